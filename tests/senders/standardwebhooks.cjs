// node standardwebhooks.cjs URL SECRET: a signed message.
const { Webhook } = require("standardwebhooks");

const [url, secret] = process.argv.slice(2);
(async () => {
  const body = JSON.stringify({ a: 1, "ü": "é" });
  const now = new Date();
  const headers = {
    "webhook-id": "msg_node",
    "webhook-timestamp": String(Math.floor(now.getTime() / 1000)),
    "webhook-signature": new Webhook(secret).sign("msg_node", now, body),
    "content-type": "application/json",
  };
  const answer = await fetch(url, { method: "POST", headers, body });
  if (answer.status !== 200) throw new Error(`${answer.status} ${await answer.text()}`);
})();
