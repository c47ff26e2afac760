package main

import (
	"net/http"

	"github.com/tmaxmax/go-sse"
)

const largestEvent = 1 << 20

// tmaxmax/go-sse reads events of up to 64 KiB by default.
func tmaxmax(job Job, report Report) {
	request, err := http.NewRequest(http.MethodGet, job.URL, nil)
	if err != nil {
		panic(err)
	}
	client := sse.Client{HTTPClient: job.client(), Backoff: sse.Backoff{InitialInterval: firstDelay}}
	connection := client.NewConnection(request)
	connection.Buffer(nil, largestEvent)
	connection.SubscribeToAll(func(event sse.Event) {
		report("event", Fields{"type": orMessage(event.Type), "data": event.Data, "id": event.LastEventID})
	})
	report("error", Fields{"message": connection.Connect().Error()})
}
