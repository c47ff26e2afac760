// Runs clients in Go as it is told by lines of JSON on stdin: the contract of ../node/zoo.js.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// firstDelay is how long a client waits where no retry: has come yet.
const firstDelay = 100 * time.Millisecond

var clients = map[string]func(Job, Report){
	"launchdarkly/eventsource (Go)": launchdarkly,
	"tmaxmax/go-sse (Go)":           tmaxmax,
}

// A Job is what a client is to do. Watchdog is in milliseconds.
type Job struct {
	Job, Client, URL string
	Watchdog         int
	TokenFile        *string
}

type Fields map[string]any

// A Report says what happened to a client.
type Report func(kind string, more Fields)

// RoundTrip sends a request with the token of this moment.
func (job Job) RoundTrip(request *http.Request) (*http.Response, error) {
	if job.TokenFile != nil {
		token, err := os.ReadFile(*job.TokenFile)
		if err != nil {
			return nil, err
		}
		request = request.Clone(request.Context())
		request.Header.Set("Authorization", "Bearer "+string(token))
	}
	return http.DefaultTransport.RoundTrip(request)
}

func (job Job) client() *http.Client {
	return &http.Client{Transport: job}
}

func orMessage(event string) string {
	if event == "" {
		return "message"
	}
	return event
}

var oneAtATime sync.Mutex

func say(job *string, kind string, more Fields) {
	line := Fields{"job": job, "kind": kind}
	for name, value := range more {
		line[name] = value
	}
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	oneAtATime.Lock()
	defer oneAtATime.Unlock()
	os.Stdout.Write(append(text, '\n'))
}

func run(job Job) {
	defer func() {
		if crash := recover(); crash != nil {
			say(nil, "crash", Fields{"message": fmt.Sprint(crash, string(debug.Stack()))})
		}
	}()
	report := func(kind string, more Fields) { say(&job.Job, kind, more) }
	clients[job.Client](job, report)
	report("end", nil)
}

func main() {
	say(nil, "ready", nil)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var job Job
		if err := json.Unmarshal(lines.Bytes(), &job); err != nil {
			panic(err)
		}
		go run(job)
	}
}
