// What may be written with typed channels, and what must not compile.
import { connect, Stream, type ChannelEvent, type Gap, type State } from "sse-gateway-client";

interface Order {
  number: number;
  status: "created" | "paid" | "shipped";
}
interface Message {
  text: string;
}
interface Channels {
  orders: Order;
  [user: `user.${string}`]: Message;
}
const options = { channels: ["orders", "user.42"] };

const stream: Stream<Channels> = connect<Channels>("https://gw.example.com", options);
const stop: () => void = stream.on("orders", (event) => {
  const order: Order = event.payload;
  const told: [string, string | null, string | null, number] = [event.channel, event.id, event.type, event.timestamp];
  console.log(order, told);
  // @ts-expect-error an order has no colour
  console.log(event.payload.colour);
});
stop();
stream.on("user.42", (event) => event.payload.text.trim());
// @ts-expect-error a message has no number
stream.on("user.42", (event) => event.payload.number);
// @ts-expect-error nobody declared such a channel
stream.on("news", () => {});
// @ts-expect-error a handler of another channel's events
stream.on("orders", (event: ChannelEvent<Message>) => event);
stream.on("gap", (gap) => {
  const told: Gap = gap;
  const missing: number | undefined = gap.missing;
  console.log(told, missing);
  // @ts-expect-error a gap brings nothing
  console.log(gap.payload);
});
stream.on("state", ({ state, reason, delay }) => {
  const told: State = state;
  console.log(told, reason?.length, delay?.toFixed());
  // @ts-expect-error there is no such state
  if (state === "sleeping") console.log("no");
});
stream.on("*", (event) => {
  if ("payload" in event) {
    const payload: Order | Message = event.payload;
    console.log(payload);
  } else console.log(event.reason, event.channel);
});
for await (const event of stream) if (!("payload" in event)) console.log(event.reason);
const id: string | undefined = stream.lastEventId;
console.log(id, stream.state, stream.reason);
stream.close();

// With a type alias, and without types.
connect<{ orders: Order }>(new URL("https://gw.example.com"), { channels: ["orders"] }).on("orders", ({ payload }) => payload.number);
const untyped = connect("https://gw.example.com", {
  channels: ["orders"],
  token: async (refused) => (refused ? null : "token"),
  credentials: "include",
  types: ["order.created"],
  share: "42",
  minDelay: 1_000,
  maxDelay: 30_000,
  signal: AbortSignal.timeout(1_000),
});
untyped.on("orders", (event) => event.payload.whatever);
untyped.on("gap", ({ channel, reason, missing, oldest, after }) => [channel, reason, missing, oldest, after]);
untyped.on("state", ({ state, reason, delay }) => [state, reason, delay]);
connect("https://gw.example.com", { channels: ["orders"], last: 20, since: "15m", lastEventId: "1-0", share: true, token: "t" });

// @ts-expect-error a stream of nothing
connect("https://gw.example.com", {});
// @ts-expect-error a stream without options
connect("https://gw.example.com");
// @ts-expect-error one channel is a list as well
connect("https://gw.example.com", { channels: "orders" });
// @ts-expect-error no such option
connect("https://gw.example.com", { channels: ["orders"], chanels: [] });
// @ts-expect-error a number is no token
connect("https://gw.example.com", { channels: ["orders"], token: () => 7 });
