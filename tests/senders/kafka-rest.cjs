// node kafka-rest.cjs BASE_URL: records to a topic and to a partition; prints what the client was answered.
const KafkaRest = require("kafka-rest");

const kafka = new KafkaRest({ url: process.argv[2] });
const show = (error, answer) => console.log(JSON.stringify({ error: error && error.data, answer }));

kafka.topic("orders").produce('{"n":1}', { key: "k1", value: '{"n":2}' }, Buffer.from("3"), null, (error, answer) => {
  show(error, answer);
  kafka.topic("orders").partition(7).produce('"last"', (error, answer) => {
    show(error, answer);
    kafka.topic("nowhere").produce("1", show);
  });
});
