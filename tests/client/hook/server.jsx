// What a server sends before the page is alive.
import { renderToString } from "react-dom/server";
import { useStream } from "sse-gateway-client/react";

function Orders({ url }) {
  const { state, stream } = useStream(url, { channels: ["orders"], on: { orders: () => {} } });
  return `${state} ${stream}`;
}

console.log(renderToString(<Orders url="http://127.0.0.1:9/" />));
console.log(renderToString(<Orders url={null} />));
