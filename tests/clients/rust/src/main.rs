//! Runs clients in Rust as it is told by lines of JSON on stdin: the contract of ../../node/zoo.js.

use std::error::Error;
use std::io::{stdin, stdout, BufRead, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Duration;
use std::{fs, process, thread};

use eventsource_client::{Client, ClientBuilder, Error as Failure, ReconnectOptions, SSE};
use futures::StreamExt;
use launchdarkly_sdk_transport::HyperTransport;
use serde_json::{json, Value};

/// How long a client waits where no retry: has come yet.
const FIRST_DELAY: Duration = Duration::from_millis(100);

fn main() {
    say(json!({"job": null, "kind": "ready"}));
    for line in stdin().lock().lines() {
        let job: Value = serde_json::from_str(&line.unwrap()).unwrap();
        thread::spawn(move || {
            let report = |mut line: Value| {
                line["job"] = job["job"].clone();
                say(line);
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            match catch_unwind(AssertUnwindSafe(|| runtime.block_on(follow(&job, &report)))) {
                Ok(Ok(())) => report(json!({"kind": "end"})),
                Ok(Err(error)) => say(json!({"job": null, "kind": "crash", "message": error.to_string()})),
                Err(_) => say(json!({"job": null, "kind": "crash", "message": "panic"})),
            }
        });
    }
    process::exit(0);
}

fn say(line: Value) {
    let mut out = stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
}

/// eventsource-client has no read timeout by default, and its headers are given once.
async fn follow(job: &Value, report: &impl Fn(Value)) -> Result<(), Box<dyn Error + Send + Sync>> {
    let transport = HyperTransport::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_millis(job["watchdog"].as_u64().unwrap()))
        .build_http()?;
    let reconnect = ReconnectOptions::reconnect(true).retry_initial(true).delay(FIRST_DELAY).build();
    let mut builder = ClientBuilder::for_url(job["url"].as_str().unwrap()).unwrap().reconnect(reconnect);
    if let Some(file) = job["tokenFile"].as_str() {
        let token = fs::read_to_string(file)?;
        builder = builder.header("Authorization", &format!("Bearer {token}")).unwrap();
    }
    let client = builder.build_with_transport(transport);
    let mut stream = client.stream();
    while let Some(told) = stream.next().await {
        match told {
            Ok(SSE::Connected(_)) => report(json!({"kind": "open"})),
            Ok(SSE::Comment(_)) => {}
            Ok(SSE::Event(event)) => report(
                json!({"kind": "event", "type": event.event_type, "data": event.data, "id": event.id}),
            ),
            Err(error) => {
                report(json!({"kind": "error", "message": error.to_string()}));
                // It would ask for ever.
                if matches!(&error, Failure::UnexpectedResponse(answer, _) if answer.status() / 100 == 4) {
                    break;
                }
            }
        }
    }
    Ok(())
}
