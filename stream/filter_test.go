package stream_test

import (
	"testing"

	"github.com/go-outbox/go-outbox/stream"
)

func TestFilterFor(t *testing.T) {
	for _, c := range []struct{ template, topic, eventType, want string }{
		{stream.DefaultTemplate, "", "", "outbox.*.*.*"},
		{stream.DefaultTemplate, "a.b", "OrderPaid", "outbox.a%2Eb.*.*"},
		{"events.{event_type}.{topic}", "orders", "", "events.*.orders"},
		{"events.{event_type}.{topic}", "", "Order Paid", "events.Order%20Paid.*"},
		{"events.{aggregate_id}", "orders", "OrderPaid", "events.*"},
	} {
		template, err := stream.ParseTemplate(c.template)
		if err != nil {
			t.Fatal(err)
		}
		if got := template.FilterFor(c.topic, c.eventType); got != c.want {
			t.Errorf("%s: FilterFor(%q, %q) = %s, want %s", c.template, c.topic, c.eventType, got, c.want)
		}
	}
}
