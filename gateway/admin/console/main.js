// The page's life: follow the figures, say when they are old, ask for the token, reload.

const SILENCE_MS = 15000;

const view = new View();
const tryIt = new TryIt();
let newest = null;
let following = null;

function look() {
  following?.stop();
  following = follow("status/stream", SILENCE_MS, {
    open() {
      showToken(false, "");
    },
    event({ type, data }) {
      if (type === "status") {
        newest = JSON.parse(data);
        byId("told").hidden = false;
        setLost(null);
        view.show(newest);
        tryIt.show(newest);
      } else if (type === "stream.close") {
        closing = JSON.parse(data).reason;
      }
    },
    lost(why) {
      setLost(CLOSINGS[closing] ?? why);
      closing = "";
    },
    refused({ code, message, status }) {
      if (status !== 401) {
        setLost(message);
        return;
      }
      showToken(true, code === "invalid_token" ? "That is not the token." : "");
    },
  });
}

const CLOSINGS = { draining: "the gateway is shutting down", overloaded: "too many pages look at it" };
let closing = "";

/** Say plainly that the figures are old, or that they are not any more. */
function setLost(why) {
  const notice = byId("lost");
  notice.hidden = why === null;
  document.body.classList.toggle("old", why !== null);
  const link = byId("link");
  link.dataset.state = why === null ? "good" : "bad";
  say(link, why === null ? "Live" : "Not live");
  if (why === null) return;
  const since = newest ? ` What you see is from ${clock(newest.now_ms)}.` : "";
  say(notice, `Connection lost: ${why}.${since} Trying again.`);
  const readiness = byId("readiness");
  readiness.dataset.state = "wait";
  say(readiness, "Unknown");
  document.title = "Connection lost – sse-gateway";
  announce("Connection lost");
}

function showToken(isAsked, trouble) {
  byId("token").hidden = !isAsked;
  say(byId("token-error"), trouble);
  if (!isAsked) return;
  byId("told").hidden = true;
  byId("links").hidden = true; // a link sends no token
  byId("lost").hidden = true;
  say(byId("readiness"), "Locked");
  say(byId("link"), "");
  byId("secret").focus();
}

byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("secret").value.trim());
  byId("secret").value = "";
  look();
});

byId("reload").addEventListener("click", async () => {
  const said = byId("reload-said");
  say(said, "Reloading.");
  try {
    const answer = await fetch("reload", { method: "POST", headers: credentials() });
    const told = await answer.json();
    const [word] = RESULTS[told.result] ?? [];
    const why = told.message && !told.errors?.length ? `: ${told.message}` : ".";
    say(said, `${word ?? "Not reloaded"}${why}`);
  } catch {
    say(said, "The gateway did not answer.");
  }
});

look();
