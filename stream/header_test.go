package stream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/textproto"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/event"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// testEvent returns an event; equal numbers make equal events.
func testEvent(seq int64) *Event {
	return &Event{
		Seq:           seq,
		ID:            uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, seq)),
		Topic:         "orders",
		AggregateType: "order",
		AggregateID:   fmt.Sprintf("order-%d", seq%10),
		EventType:     "order.created",
		Data:          fmt.Appendf(nil, `{"seq":%d}`, seq),
		CreatedAt:     time.Date(2025, 3, 30, 1, 59, 59, 123456000, time.UTC).Add(time.Duration(seq) * time.Second),
	}
}

func compareEvents(t *testing.T, got, want *Event) {
	t.Helper()
	if got.Seq != want.Seq || got.ID != want.ID || got.Topic != want.Topic ||
		got.AggregateType != want.AggregateType || got.AggregateID != want.AggregateID ||
		got.EventType != want.EventType || !bytes.Equal(got.Data, want.Data) ||
		!got.CreatedAt.Equal(want.CreatedAt) {
		t.Errorf("event = %+v, want %+v", got, want)
	}
	var gotHeaders, wantHeaders any
	if got.Headers != nil {
		if err := json.Unmarshal(got.Headers, &gotHeaders); err != nil {
			t.Errorf("headers %s: %v", got.Headers, err)
		}
	}
	if want.Headers != nil {
		if err := json.Unmarshal(want.Headers, &wantHeaders); err != nil {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(gotHeaders, wantHeaders) {
		t.Errorf("headers = %s, want %s", got.Headers, want.Headers)
	}
}

func TestMessage(t *testing.T) {
	ev := testEvent(7)
	ev.AggregateID = "Größe 42 %\n"
	ev.Headers = []byte(`{"traceparent":"00-4bf9","X-Many":["a","b"],"n":1.50,"b":true,"x-lower":"ä"}`)
	encoder := Encoder{Template: defaultTemplate(t)}
	msg, err := encoder.Message(ev, "_INBOX.reply")
	if err != nil {
		t.Fatal(err)
	}
	want := &nats.Msg{
		Subject: "outbox.orders.order.Gr%C3%B6%C3%9Fe%2042%20%25%0A",
		Reply:   "_INBOX.reply",
		Data:    ev.Data,
		Header: nats.Header{
			"Nats-Msg-Id":           {ev.ID.String()},
			"Outbox-Seq":            {"7"},
			"Outbox-Topic":          {"orders"},
			"Outbox-Aggregate-Type": {"order"},
			"Outbox-Aggregate-Id":   {"Größe 42 %25%0A"},
			"Outbox-Event-Type":     {"order.created"},
			"Outbox-Created-At":     {"2025-03-30T02:00:06.123456Z"},
			"traceparent":           {"00-4bf9"},
			"X-Many":                {"a", "b"},
			"n":                     {"1.50"},
			"b":                     {"true"},
			"x-lower":               {"ä"},
		},
	}
	if !reflect.DeepEqual(msg, want) {
		t.Errorf("Message = %+v, want %+v", msg, want)
	}

	got, err := Decode(msg.Header, msg.Data)
	if err != nil {
		t.Fatal(err)
	}
	ev.Headers = []byte(`{"traceparent":"00-4bf9","X-Many":["a","b"],"n":"1.50","b":"true","x-lower":"ä"}`)
	compareEvents(t, &got, ev)
}

func TestMessageOfACloudEvent(t *testing.T) {
	ev := testEvent(7)
	ev.AggregateID = `Euro € 😀 "50%"`
	ev.Headers = []byte(`{"content-type":"text/plain; charset=utf-8"}`)
	encoder := Encoder{Template: defaultTemplate(t), CloudEventsSource: "/orders of the shop"}
	header, err := encoder.Header(ev)
	if err != nil {
		t.Fatal(err)
	}
	attributes := make(nats.Header)
	for name, values := range header {
		if strings.HasPrefix(name, "ce-") {
			attributes[name] = values
		}
	}
	want := nats.Header{
		"ce-specversion":     {"1.0"},
		"ce-id":              {ev.ID.String()},
		"ce-source":          {"/orders%20of%20the%20shop"},
		"ce-type":            {"order.created"},
		"ce-subject":         {"Euro%20%E2%82%AC%20%F0%9F%98%80%20%2250%25%22"},
		"ce-time":            {"2025-03-30T02:00:06.123456Z"},
		"ce-datacontenttype": {"text/plain;%20charset=utf-8"},
	}
	if !reflect.DeepEqual(attributes, want) {
		t.Errorf("attributes = %v, want %v", attributes, want)
	}

	// They are not the row's own headers.
	got, err := Decode(header, ev.Data)
	if err != nil {
		t.Fatal(err)
	}
	compareEvents(t, &got, ev)
}

func TestMessageOfAStructuredCloudEventGetsNoAttributes(t *testing.T) {
	ev := testEvent(1)
	ev.EventType = "" // would be refused otherwise
	ev.Headers = []byte(`{"Content-Type":"Application/CloudEvents+json; charset=utf-8"}`)
	header, err := Encoder{Template: defaultTemplate(t), CloudEventsSource: "/x"}.Header(ev)
	if err != nil {
		t.Fatal(err)
	}
	if got := header.Get("ce-id"); got != "" {
		t.Errorf("ce-id = %q, want none", got)
	}
}

func TestCloudEventWithoutOptionalAttributes(t *testing.T) {
	ev := testEvent(1)
	ev.AggregateID = ""
	header, err := Encoder{Template: defaultTemplate(t), CloudEventsSource: "/x"}.Header(ev)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ce-subject", "ce-datacontenttype"} {
		if values, ok := header[name]; ok {
			t.Errorf("%s = %q, want none", name, values)
		}
	}
}

func TestMessageRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Event)
		want   string
	}{
		"nil id":           {func(ev *Event) { ev.ID = uuid.Nil }, "nil UUID"},
		"far future":       {func(ev *Event) { ev.CreatedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "year 10000"},
		"command":          {func(ev *Event) { ev.Headers = []byte(`{"nats-rollup":"all"}`) }, `header "nats-rollup"`},
		"large headers":    {func(ev *Event) { ev.AggregateID = strings.Repeat("x", 1<<16) }, "exceed the 64512"},
		"status, no data":  {func(ev *Event) { ev.Data, ev.Headers = nil, []byte(`{"Status":"404"}`) }, `header "Status"`},
		"ce- is taken":     {func(ev *Event) { ev.Headers = []byte(`{"CE-id":"1"}`) }, `header "CE-id"`},
		"type is demanded": {func(ev *Event) { ev.EventType = "" }, "event_type: is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			ev := testEvent(1)
			test.change(ev)
			_, err := Encoder{Template: defaultTemplate(t), CloudEventsSource: "/x"}.Message(ev, "")
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("Message: %v; want an error with %q", err, test.want)
			}
			if e := Classify(err); e.Fault != FaultRow || e.Ambiguous() {
				t.Errorf("fault %v, ambiguous %v; want the row's, for certain", e.Fault, e.Ambiguous())
			}
		})
	}

	ev := testEvent(1)
	ev.Headers = []byte(`{"Status":"paid"}`)
	if _, err := (Encoder{Template: defaultTemplate(t)}).Message(ev, ""); err != nil {
		t.Errorf("Status on an event with data: %v", err)
	}
}

func TestEncoderValidate(t *testing.T) {
	tmpl := defaultTemplate(t)
	for _, encoder := range []Encoder{{Template: tmpl}, {Template: tmpl, CloudEventsSource: "https://example.com/a?b"}} {
		if err := encoder.Validate(); err != nil {
			t.Errorf("%+v: %v", encoder, err)
		}
	}
	for _, encoder := range []Encoder{{}, {Template: tmpl, CloudEventsSource: "http://[::1"}} {
		if err := encoder.Validate(); err == nil {
			t.Errorf("%+v was accepted", encoder)
		}
	}
	// No row may be blamed for it.
	if _, err := (Encoder{}).Message(testEvent(1), ""); err == nil || Classify(err).Fault != FaultSetup {
		t.Errorf("Message without a template: %v, want the set-up's fault", err)
	}
}

func TestValidateHeaders(t *testing.T) {
	for _, doc := range []string{
		``, `null`, `{}`, `{"a":"b"}`, `{"Content-Type":"application/json"}`, `{"a":[]}`, `{"a":["b","c"]}`,
		`{"a":1e400,"b":false,"c":[1,"x",true]}`, `{"A":"1","a":"2"}`, `{"Naturally":"x"}`, `{"ce-id":"x"}`,
		`{"X-Servers":"Nats-01,Nats-02"}`, `{"X-Tab":"a\tb"}`, `{"a":"Nats-Msg-Id"}`,
	} {
		if err := ValidateHeaders([]byte(doc)); err != nil {
			t.Errorf("ValidateHeaders(%s): %v", doc, err)
		}
	}
	for doc, want := range map[string]string{
		`x`:                                      "not a JSON object",
		`[]`:                                     "not a JSON object",
		`"secret"`:                               "not a JSON object",
		`{"a":"b"}{}`:                            "not a JSON object",
		`{"a":null}`:                             `header "a": want a string`,
		`{"a":{"b":"c"}}`:                        `header "a": want a string`,
		`{"a":[["b"]]}`:                          `header "a": want a string`,
		`{"a":["b",null]}`:                       `header "a": want a string`,
		`{"":"x"}`:                               `header "": not a header name`,
		`{"a b":"x"}`:                            `header "a b": not a header name`,
		`{"a:":"x"}`:                             `header "a:": not a header name`,
		`{"a\r\nb":"x"}`:                         `not a header name`,
		`{"ä":"x"}`:                              `header "ä": not a header name`,
		`{"a(b)":"x"}`:                           `not a header name`,
		`{"Nats-Expected-Stream":"x"}`:           `header "Nats-Expected-Stream": names that start with Nats-`,
		`{"NATS-TTL":"1s"}`:                      `names that start with Nats-`,
		`{"outbox-seq":"1"}`:                     `names that start with Outbox-`,
		`{"a":"x\r\nNats-Rollup: all"}`:          `header "a": the value has a CR, LF or NUL`,
		`{"a":["x","\u0000"]}`:                   `header "a": the value has a CR, LF or NUL`,
		`{"a":"Nats-Msg-IdNats-Msg-Id"}`:         `header "a": the value would hide`,
		`{"a":"Nats-Msg-Id Nats-Msg-Id"}`:        `header "a": the value would hide`,
		`{"a":"xNats-x Nats-Nats-Msg-Nats-Msg"}`: `header "a": the value would hide`,
		`{"XNats-Msg-IdNats-Msg-Id":"x"}`:        `would hide`,
	} {
		err := ValidateHeaders([]byte(doc))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ValidateHeaders(%s) = %v, want an error with %q", doc, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("ValidateHeaders(%s) = %v shows a value", doc, err)
		}
	}

	err := ValidateHeaders([]byte(`{"c":"ok","Nats-B":"x","":"x"}`))
	if err == nil || strings.Count(err.Error(), "header \"") != 2 {
		t.Errorf("two faulty headers: %v; want both named", err)
	}
	err = Encoder{CloudEventsSource: "/x"}.ValidateHeaders([]byte(`{"ce-id":"x"}`))
	if err == nil {
		t.Error("a ce- header was accepted while CloudEvents is on")
	}
}

// A value that mentions Nats-Msg-Id twice hides the real header from the
// server, if it comes first in the block, and nats.go sends headers in no
// fixed order. Duplicates would be stored every other time.
func TestNoValueHidesTheIDFromTheServer(t *testing.T) {
	const trap = "Nats-Msg-IdNats-Msg-Id"
	srv := streamtest.Start(t)
	js := srv.JetStream(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}}); err != nil {
		t.Fatal(err)
	}

	encoder := Encoder{Template: defaultTemplate(t), CloudEventsSource: "/" + trap}
	ev := testEvent(1)
	ev.Topic, ev.AggregateType, ev.AggregateID, ev.EventType = trap, trap, trap, trap
	for i := range 64 {
		msg, err := encoder.Message(ev, "")
		if err != nil {
			t.Fatal(err)
		}
		ack, err := js.PublishMsg(t.Context(), msg)
		if err != nil {
			t.Fatal(err)
		}
		if want := i > 0; ack.Duplicate != want {
			t.Fatalf("publish %d: duplicate = %v, want %v", i+1, ack.Duplicate, want)
		}
	}
	got, err := Decode(srv.Messages(t, "OUTBOX")[0].Header, ev.Data)
	if err != nil {
		t.Fatal(err)
	}
	compareEvents(t, &got, ev)
}

func TestDecodeRefuses(t *testing.T) {
	if _, err := Decode(nil, nil); !errors.Is(err, ErrNoEvent) {
		t.Errorf("Decode of a message without headers: %v, want %v", err, ErrNoEvent)
	}
	good, err := Encoder{Template: defaultTemplate(t)}.Header(testEvent(1))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		HeaderSeq:         "one",
		HeaderMsgID:       "not-a-uuid",
		HeaderCreatedAt:   "yesterday",
		HeaderAggregateID: "%x",
	} {
		bad := maps.Clone(good)
		bad.Set(name, value)
		_, err := Decode(bad, nil)
		if err == nil || errors.Is(err, ErrNoEvent) || !strings.Contains(err.Error(), name) {
			t.Errorf("Decode with %s %q: %v; want an error that names it", name, value, err)
		}
	}
}

func TestEncodeHeaderValue(t *testing.T) {
	for raw, want := range map[string]string{
		"":                  "",
		"plain":             "plain",
		"in the middle":     "in the middle",
		" at the ends ":     "%20at the ends%20",
		" ":                 "%20",
		"100%":              "100%25",
		"%20":               "%2520",
		"a\r\nb\tc\x00\x7f": "a%0D%0Ab%09c%00%7F",
		"Größe 订单 🦀":        "Größe 订单 🦀",
		"\u00a0x\u2003":     "%C2%A0x%E2%80%83",
		"a\u0085b\u2028c":   "a%C2%85b%E2%80%A8c",
		"bad\xffutf8":       "bad%FFutf8",
		"a Nats-Msg-Id":     "a %4Eats-Msg-Id",
	} {
		got := EncodeHeaderValue(raw)
		if got != want {
			t.Errorf("EncodeHeaderValue(%q) = %q, want %q", raw, got, want)
		}
		if back, err := DecodeHeaderValue(got); back != raw || err != nil {
			t.Errorf("DecodeHeaderValue(%q) = %q, %v; want %q", got, back, err, raw)
		}
	}
}

func FuzzHeaderValue(f *testing.F) {
	for _, raw := range awkward() {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		value := EncodeHeaderValue(raw)
		if back, err := DecodeHeaderValue(value); back != raw || err != nil {
			t.Errorf("DecodeHeaderValue(%q) = %q, %v; want %q", value, back, err, raw)
		}
		if !utf8.ValidString(value) || event.HidesHeader(value) {
			t.Errorf("EncodeHeaderValue(%q) = %q: not fit for a header", raw, value)
		}
		// The way of nats.go to the wire and back.
		header, err := nats.DecodeHeadersMsg([]byte("NATS/1.0\r\nK: " + textproto.TrimString(value) + "\r\n\r\n"))
		if err != nil || len(header) != 1 || header.Get("K") != value {
			t.Errorf("EncodeHeaderValue(%q) = %q, read back as %v, %v", raw, value, header, err)
		}
		if attribute := encodeAttribute(raw); strings.ContainsFunc(attribute, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
			t.Errorf("encodeAttribute(%q) = %q: not what CloudEvents allows", raw, attribute)
		}
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add([]byte(`{"a":"b","c":["d",1,true],"Nats-X":"y"}`))
	f.Add([]byte(`{"a":"Nats-Msg-IdNats-Msg-Id"}`))
	tmpl, err := ParseTemplate("")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		ev := testEvent(1)
		ev.Headers = doc
		msg, err := Encoder{Template: tmpl}.Message(ev, "")
		if err != nil {
			if Classify(err).Fault != FaultRow {
				t.Errorf("Message with headers %q: %v: not the row's fault", doc, err)
			}
			return
		}
		if err := ValidateHeaders(doc); err != nil {
			t.Errorf("Message took the headers %q, ValidateHeaders did not: %v", doc, err)
		}
		// The fast path agrees with the other, which a leading name with an
		// escape makes the encoder take.
		slow := testEvent(1)
		slow.Headers = append([]byte(`{"\u0079":"",`), bytes.TrimLeft(doc, " \t\r\n")[min(1, len(doc)):]...)
		if slowHeader, err := (Encoder{Template: tmpl}).Header(slow); err == nil && len(msg.Header["y"]) == 0 {
			delete(slowHeader, "y")
			if !sameHeader(slowHeader, msg.Header) {
				t.Errorf("headers %q became %v, or %v through the slow path", doc, msg.Header, slowHeader)
			}
		}

		got, err := Decode(msg.Header, msg.Data)
		if err != nil {
			t.Fatalf("headers %q: %v", doc, err)
		}
		// What was read back makes the same headers again.
		again, err := Encoder{Template: tmpl}.Header(&got)
		if err != nil || !sameHeader(again, msg.Header) {
			t.Errorf("headers %q became %v, read back %v, %v", doc, msg.Header, again, err)
		}
	})
}

// sameHeader compares headers; a name without values is as good as absent.
func sameHeader(a, b nats.Header) bool {
	used := func(h nats.Header) nats.Header {
		h = maps.Clone(h)
		maps.DeleteFunc(h, func(_ string, values []string) bool { return len(values) == 0 })
		return h
	}
	return reflect.DeepEqual(used(a), used(b))
}

func BenchmarkMessage(b *testing.B) {
	tmpl, err := ParseTemplate("")
	if err != nil {
		b.Fatal(err)
	}
	plain, headers := testEvent(1), testEvent(1)
	headers.Headers = []byte(`{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "Content-Type": "application/json"}`)
	for name, run := range map[string]struct {
		encoder Encoder
		event   *Event
	}{
		"plain":       {Encoder{Template: tmpl}, plain},
		"headers":     {Encoder{Template: tmpl}, headers},
		"cloudevents": {Encoder{Template: tmpl, CloudEventsSource: "/orders"}, plain},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := run.encoder.Message(run.event, ""); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// An event that a producer may insert is never refused for its headers later, and hardly one is refused that would do.
func TestProducersRulesAreTheEncoders(t *testing.T) {
	for _, id := range []string{"1", "ä", "Nats-Nats-", strings.Repeat("é", 10_000), strings.Repeat("%", 20_000)} {
		for room := -40; room <= 120; room += 4 {
			ev := testEvent(math.MaxInt64)
			ev.AggregateID = id
			size := event.NewSize(ev.Topic, ev.AggregateType, ev.AggregateID, ev.EventType)
			value := strings.Repeat("x", MaxHeader-int(size)-len("Trace: \r\n")-room)
			size.Add("Trace", value)
			ev.Headers = []byte(`{"Trace": "` + value + `"}`)

			_, err := Encoder{Template: defaultTemplate(t)}.Header(ev)
			if size.Check() == nil && err != nil {
				t.Errorf("%d bytes of room: the producer's check passes, the encoder says %v", room, err)
			}
			if room < -30 && err == nil {
				t.Errorf("%d bytes of room: the encoder takes more than a producer may insert", room)
			}
		}
	}
}
