// What may be written with the hook, and what must not compile.
import { useStream } from "sse-gateway-client/react";

interface Order {
  number: number;
}
interface Channels {
  orders: Order;
  [user: `user.${string}`]: { text: string };
}

export function Orders(): string {
  const { state, reason, delay, stream } = useStream<Channels>("https://gw.example.com", {
    channels: ["orders", "user.42"],
    share: true,
    token: async () => "token",
    on: {
      orders: (event) => event.payload.number,
      "user.42": (event) => event.payload.text.trim(),
      gap: ({ channel, reason, missing }) => [channel, reason, missing],
      state: ({ state, reason }) => [state, reason],
      "*": (event) => ("payload" in event ? event.payload : event.reason),
    },
  });
  stream?.on("orders", (event) => event.payload.number);
  // @ts-expect-error there may be none yet
  stream.close();
  // @ts-expect-error there is no such state
  if (state === "sleeping") return "no";
  return `${state} ${reason?.trim()} ${delay?.toFixed()}`;
}

export function Untyped(): string {
  const options = { channels: ["orders"] };
  useStream(null, options);
  useStream(undefined, options);
  return useStream(new URL("https://gw.example.com"), {
    ...options,
    on: {
      orders: ({ payload }) => payload.whatever,
      gap: ({ channel }) => channel,
      state: ({ state }) => state,
    },
  }).state;
}

export function Wrong(): void {
  // @ts-expect-error a stream of nothing
  useStream("https://gw.example.com", {});
  // @ts-expect-error what is shown says when it ends
  useStream("https://gw.example.com", { channels: ["orders"], signal: AbortSignal.timeout(1) });
  // @ts-expect-error an order has no colour
  useStream<Channels>("", { channels: [], on: { orders: (event) => event.payload.colour } });
  // @ts-expect-error nobody declared such a channel
  useStream<Channels>("", { channels: [], on: { news: () => {} } });
}
