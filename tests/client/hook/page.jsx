// A component as an application has it, and handles for the test to change what it is given.
import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { useStream } from "sse-gateway-client/react";

window.seen = [];
window.streams = new Set();

function Orders({ url }) {
  const [channels, setChannels] = useState(["orders"]);
  const [round, setRound] = useState(0);
  const [token, setToken] = useState();
  const see = ({ channel, payload }) => seen.push([round, channel, payload]);
  const { state, reason, stream } = useStream(url, {
    channels,
    token,
    share: window.isShared === true,
    minDelay: 10,
    on: { orders: see, stock: see, gap: ({ reason }) => seen.push([round, "gap", reason]), state: () => {} },
  });
  Object.assign(window, { setChannels, setRound, setToken });
  if (stream) streams.add(stream);
  return <p>{[round, state, reason ?? "-", stream ? "there" : "none"].join(" ")}</p>;
}

window.show = (url) => {
  const root = createRoot(document.body.appendChild(document.createElement("main")));
  const render = (url) => root.render(<StrictMode>{url === false ? null : <Orders url={url} />}</StrictMode>);
  window.rerender = render;
  render(url);
};
