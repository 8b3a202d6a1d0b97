package stream_test

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/stream"
)

func ExampleTemplate_Subject() {
	template, err := stream.ParseTemplate("outbox.{topic}.{aggregate_type}.{aggregate_id}")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(template.Subject(&stream.Event{Topic: "orders", AggregateType: "order", AggregateID: "42"}))
	fmt.Println(template.Subject(&stream.Event{Topic: "orders", AggregateType: "customer name", AggregateID: "J. Doe > *"}))
	fmt.Println(template.Filter())
	// Output:
	// outbox.orders.order.42
	// outbox.orders.customer%20name.J%2E%20Doe%20%3E%20%2A
	// outbox.*.*.*
}

// A consumer turns the message that it gets into the event that was inserted.
func ExampleDecode() {
	template, err := stream.ParseTemplate(stream.DefaultTemplate)
	if err != nil {
		fmt.Println(err)
		return
	}
	msg, err := stream.Encoder{Template: template}.Message(&stream.Event{
		Seq:           7,
		ID:            uuid.MustParse("0195f7a2-7d6a-7c1e-8d3e-1f2a3b4c5d6e"),
		Topic:         "customers",
		AggregateType: "customer name",
		AggregateID:   "J. Doe > *",
		EventType:     "created",
		Headers:       []byte(`{"Content-Type": "application/json"}`),
		Data:          []byte(`{}`),
		CreatedAt:     time.Date(2025, 4, 1, 12, 0, 0, 0, time.UTC),
	}, "")
	if err != nil {
		fmt.Println(err)
		return
	}

	event, err := stream.Decode(msg.Header, msg.Data)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(event.Seq, event.ID, event.AggregateID)
	fmt.Println(string(event.Headers))
	// Output:
	// 7 0195f7a2-7d6a-7c1e-8d3e-1f2a3b4c5d6e J. Doe > *
	// {"Content-Type":"application/json"}
}

func ExampleClassify() {
	err := stream.ValidateHeaders([]byte(`{"Nats-Rollup": "all"}`))
	fmt.Println(err)
	_, err = stream.Encoder{}.Message(&stream.Event{}, "")
	fmt.Println(stream.Classify(err).Fault, err)
	// Output:
	// header "Nats-Rollup": names that start with Nats- are commands to the server
	// setup subject template: none was parsed
}
