package main

import (
	"errors"
	"net/http"
	"time"

	"github.com/launchdarkly/eventsource"
)

// launchdarkly/eventsource has no read timeout by default, and retries for ever after a refusal.
func launchdarkly(job Job, report Report) {
	request, err := http.NewRequest(http.MethodGet, job.URL, nil)
	if err != nil {
		panic(err)
	}
	stream, err := eventsource.SubscribeWithRequestAndOptions(request,
		eventsource.StreamOptionHTTPClient(job.client()),
		eventsource.StreamOptionReadTimeout(time.Duration(job.Watchdog)*time.Millisecond),
		eventsource.StreamOptionCanRetryFirstConnection(-1),
		eventsource.StreamOptionInitialRetry(firstDelay),
		eventsource.StreamOptionErrorHandler(func(err error) eventsource.StreamErrorHandlerResult {
			report("error", Fields{"message": err.Error()})
			var refused eventsource.SubscriptionError
			return eventsource.StreamErrorHandlerResult{
				CloseNow: errors.As(err, &refused) && refused.Code >= 400 && refused.Code < 500,
			}
		}))
	if err != nil {
		return // refused at once, and reported
	}
	for event := range stream.Events {
		report("event", Fields{"type": orMessage(event.Event()), "data": event.Data(), "id": event.Id()})
	}
}
