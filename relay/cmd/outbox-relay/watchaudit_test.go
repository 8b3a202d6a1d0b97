package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// A relay with audit_interval tells by metric and log what breaks the claim, each event once.
func TestRelayAudits(t *testing.T) {
	dsn, server := storetest.NewDatabase(t), streamtest.Start(t)
	relay := start(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": server.URL(), "OUTBOX_AUDIT_INTERVAL": "50ms"})
	addr, _ := relay.logged("serving health and metrics")["addr"].(string)
	scrape := func() string {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/metrics", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	// metric returns the value of the first metric whose line begins so.
	metric := func(begin string) string {
		for line := range strings.Lines(scrape()) {
			if strings.HasPrefix(line, begin) {
				return line[strings.LastIndex(line, " ")+1 : len(line)-1]
			}
		}
		return ""
	}
	const audited, twice = "outbox_relay_audited_events_total{", `outbox_relay_violations_total{kind="twice"`
	relay.logged("leading")
	insert(t, dsn, "users", "User", "17", "UserCreated", "x")
	insert(t, dsn, "users", "User", "17", "UserVerified", "x")
	eventually(t, "the events are audited", func() bool { return metric(audited) >= "2" })
	if got := metric(twice); got != "0" {
		t.Errorf("%s is %q, want 0", twice, got)
	}

	js, err := jetstream.New(server.Conn(t))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "OUTBOX")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.Duplicates = 100 * time.Millisecond
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the message is stored again", func() bool {
		ack, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: msg.Subject, Header: msg.Header, Data: msg.Data})
		if err != nil {
			t.Fatal(err)
		}
		return !ack.Duplicate
	})
	record := relay.logged("an audit has found an event that breaks the claim")
	if record["kind"] != "twice" || record["seq"] != 1.0 {
		t.Errorf("the record is %v, want seq 1, twice", record)
	}
	before := metric(audited)
	eventually(t, "there is another audit", func() bool { return metric(audited) != before })
	if got := metric(twice); got != "1" {
		t.Errorf("%s is %q, want 1", twice, got)
	}
}
