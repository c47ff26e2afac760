import com.launchdarkly.eventsource.ConnectStrategy;
import com.launchdarkly.eventsource.ErrorStrategy;
import com.launchdarkly.eventsource.EventSource;
import com.launchdarkly.eventsource.FaultEvent;
import com.launchdarkly.eventsource.MessageEvent;
import com.launchdarkly.eventsource.StartedEvent;
import com.launchdarkly.eventsource.StreamEvent;
import com.launchdarkly.eventsource.StreamHttpErrorException;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.io.UncheckedIOException;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Runs clients in Java as it is told by lines of JSON on stdin: the contract of ../node/zoo.js. */
public class Zoo {
  /** Milliseconds that a client waits where no retry: has come yet. */
  private static final long FIRST_DELAY = 100;

  private static final PrintStream OUT = new PrintStream(System.out, false, StandardCharsets.UTF_8);

  public static void main(String[] arguments) throws IOException {
    say(null, "ready");
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line; (line = lines.readLine()) != null; ) {
      String job = line;
      new Thread(() -> run(job)).start();
    }
    Runtime.getRuntime().halt(0);
  }

  private static void run(String job) {
    try {
      follow(job, field(job, "job"));
      say(field(job, "job"), "end");
    } catch (Throwable error) {
      StringWriter trace = new StringWriter();
      error.printStackTrace(new PrintWriter(trace));
      say(null, "crash", "message", trace.toString());
    }
  }

  /** okhttp-eventsource gives up after 5 s of silence by default, and retries for ever after a refusal. */
  private static void follow(String job, String name) {
    String tokenFile = field(job, "tokenFile");
    ConnectStrategy connect =
        ConnectStrategy.http(URI.create(field(job, "url")))
            .readTimeout(Long.parseLong(field(job, "watchdog")), TimeUnit.MILLISECONDS)
            .requestTransformer(
                request ->
                    tokenFile == null
                        ? request
                        : request.newBuilder().header("Authorization", "Bearer " + read(tokenFile)).build());
    EventSource source =
        new EventSource.Builder(connect)
            .errorStrategy(ErrorStrategy.alwaysContinue())
            .retryDelay(FIRST_DELAY, TimeUnit.MILLISECONDS)
            .build();
    for (StreamEvent told : source.anyEvents()) {
      if (told instanceof StartedEvent) {
        say(name, "open");
      } else if (told instanceof MessageEvent) {
        MessageEvent event = (MessageEvent) told;
        say(name, "event", "type", event.getEventName(), "data", event.getData(), "id", event.getLastEventId());
      } else if (told instanceof FaultEvent) {
        Exception cause = ((FaultEvent) told).getCause();
        say(name, "error", "message", String.valueOf(cause));
        if (cause instanceof StreamHttpErrorException && ((StreamHttpErrorException) cause).getCode() / 100 == 4) {
          source.close();
          return;
        }
      }
    }
  }

  private static String read(String file) {
    try {
      return Files.readString(Path.of(file));
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }

  /** Returns a text or number of a line, none of which holds a character that JSON escapes; null if there is none. */
  private static String field(String line, String name) {
    Matcher found = Pattern.compile('"' + name + "\": (?:\"([^\"]*)\"|(\\d+))").matcher(line);
    return found.find() ? (found.group(1) == null ? found.group(2) : found.group(1)) : null;
  }

  private static synchronized void say(String job, String kind, String... more) {
    StringBuilder line = new StringBuilder("{\"job\": ").append(quoted(job)).append(", \"kind\": ").append(quoted(kind));
    for (int place = 0; place < more.length; place += 2) {
      line.append(", ").append(quoted(more[place])).append(": ").append(quoted(more[place + 1]));
    }
    OUT.append(line.append("}\n"));
    OUT.flush();
  }

  private static String quoted(String text) {
    if (text == null) {
      return "null";
    }
    StringBuilder out = new StringBuilder("\"");
    for (char each : text.toCharArray()) {
      if (each < ' ' || each == '"' || each == '\\') {
        out.append(String.format("\\u%04x", (int) each));
      } else {
        out.append(each);
      }
    }
    return out.append('"').toString();
  }
}
