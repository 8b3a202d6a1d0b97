package stream

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestEncodeToken(t *testing.T) {
	for raw, want := range map[string]string{
		"":                            "%-",
		"order":                       "order",
		"0195f7a2-7d6a-7c1e-8d3e":     "0195f7a2-7d6a-7c1e-8d3e",
		"urn:user_7=~@host":           "urn:user_7=~@host",
		"a.b":                         "a%2Eb",
		"*":                           "%2A",
		">":                           "%3E",
		"%":                           "%25",
		"%2E":                         "%252E",
		"%-":                          "%25-",
		"two words\r\n":               "two%20words%0D%0A",
		"$JS":                         "%24JS",
		"é":                           "%C3%A9",
		strings.Repeat("x", 112):      strings.Repeat("x", 112),
		strings.Repeat(".", 37):       strings.Repeat("%2E", 37),
		strings.Repeat(".", 37) + "x": strings.Repeat("%2E", 37) + "x",
	} {
		got := EncodeToken(raw)
		if got != want {
			t.Errorf("EncodeToken(%q) = %q, want %q", raw, got, want)
		}
		if back, err := DecodeToken(got); back != raw || err != nil {
			t.Errorf("DecodeToken(%q) = %q, %v; want %q", got, back, err, raw)
		}
	}
}

func TestEncodeTokenHashesWhatIsTooLong(t *testing.T) {
	tokens := make(map[string]string)
	for _, raw := range []string{
		strings.Repeat("x", 113),
		strings.Repeat("x", 114),
		strings.Repeat(".", 38), // 114 bytes once encoded
		strings.Repeat("世", 600),
	} {
		token := EncodeToken(raw)
		if len(token) != 45 || !strings.HasPrefix(token, "%h") {
			t.Errorf("EncodeToken of %d bytes = %q, want %%h and 43 more bytes", len(raw), token)
		}
		if other, ok := tokens[token]; ok {
			t.Errorf("%q and %q share the token %q", raw, other, token)
		}
		tokens[token] = raw
		if got, err := DecodeToken(token); got != "" || !errors.Is(err, ErrHashed) {
			t.Errorf("DecodeToken(%q) = %q, %v; want %v", token, got, err, ErrHashed)
		}
	}
}

func TestDecodeTokenTakesOnlyWhatEncodeTokenMakes(t *testing.T) {
	for _, token := range []string{
		"", "a.b", "*", "a b", "%", "%4", "%4g", "%zz",
		"%2e",   // lower-case digits
		"%41",   // an escaped letter
		"%-x",   // more than the empty text
		"%habc", // a short hash
		"%h" + strings.Repeat("!", 43),
		strings.Repeat("x", 113),
		"%fence",
	} {
		if got, err := DecodeToken(token); err == nil || errors.Is(err, ErrHashed) {
			t.Errorf("DecodeToken(%q) = %q, %v; want an error", token, got, err)
		}
	}
}

func TestTemplate(t *testing.T) {
	ev := &Event{Topic: "orders", AggregateType: "order", AggregateID: "7.1", EventType: "order created"}
	for text, want := range map[string]struct{ subject, filter, stream, control string }{
		"": {
			"outbox.orders.order.7%2E1", "outbox.*.*.*", "outbox.>", "outbox.%fence.%fence.%fence-public%2Eoutbox",
		},
		"{topic}": {},
		"acme.prod.{event_type}": {
			"acme.prod.order%20created", "acme.prod.*", "acme.prod.>", "acme.prod.%fence-public%2Eoutbox",
		},
		"shop.{topic}.events.{aggregate_id}.v1": {
			"shop.orders.events.7%2E1.v1", "shop.*.events.*.v1", "shop.>", "shop.%fence.events.%fence-public%2Eoutbox.v1",
		},
	} {
		tmpl, err := ParseTemplate(text)
		if want.subject == "" {
			if err == nil {
				t.Errorf("ParseTemplate(%q) succeeded", text)
			}
			continue
		}
		if err != nil {
			t.Errorf("ParseTemplate(%q): %v", text, err)
			continue
		}
		if got := tmpl.Subject(ev); got != want.subject {
			t.Errorf("%q: Subject = %q, want %q", text, got, want.subject)
		}
		if got := tmpl.Filter(); got != want.filter {
			t.Errorf("%q: Filter = %q, want %q", text, got, want.filter)
		}
		if got := tmpl.StreamSubject(); got != want.stream {
			t.Errorf("%q: StreamSubject = %q, want %q", text, got, want.stream)
		}
		control := tmpl.ControlSubject("public.outbox")
		if control != want.control {
			t.Errorf("%q: ControlSubject = %q, want %q", text, control, want.control)
		}
		if !covers(tmpl.Filter(), control) || !covers(tmpl.StreamSubject(), tmpl.Filter()) {
			t.Errorf("%q: StreamSubject %q, Filter %q and ControlSubject %q do not cover each other",
				text, tmpl.StreamSubject(), tmpl.Filter(), control)
		}
	}
}

func TestParseTemplateRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"outbox":                              "needs a placeholder",
		"{topic}.{aggregate_id}":              "first token must be a literal",
		"_outbox.{topic}":                     "_outbox is where the relay keeps its own messages",
		"_outbox.OUTBOX.{aggregate_id}":       "_outbox is where the relay keeps its own messages",
		"outbox.{topic}.{topic}":              "{topic} is used twice",
		"outbox.x-{topic}":                    "must be a whole token",
		"outbox.{topic}{aggregate_id}":        "must be a whole token",
		"outbox.{Topic}":                      "unknown placeholder {Topic}",
		"outbox.{}":                           "unknown placeholder {}",
		"outbox..{topic}":                     "empty token",
		".{topic}":                            "empty token",
		"outbox.{topic}.":                     "empty token",
		"outbox.*.{topic}":                    "only letters, digits",
		"outbox.{topic}.>":                    "only letters, digits",
		"out box.{topic}":                     "only letters, digits",
		"out\tbox.{topic}":                    "only letters, digits",
		"öutbox.{topic}":                      "only letters, digits",
		"outbox%.{topic}":                     "only letters, digits",
		"$JS.{topic}":                         "only letters, digits",
		"_INBOX.{topic}":                      "reserved by NATS",
		"_R_.{topic}":                         "reserved by NATS",
		strings.Repeat("x", 400) + ".{topic}": "more than 512",
	} {
		if tmpl, err := ParseTemplate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseTemplate(%q) = %v, %v; want an error with %q", text, tmpl, err, want)
		}
	}

	// The longest literal that leaves room for four placeholders.
	fits := strings.Repeat("x", MaxSubject-4*(MaxToken+1))
	tail := ".{topic}.{aggregate_type}.{aggregate_id}.{event_type}"
	if _, err := ParseTemplate(fits + tail); err != nil {
		t.Error(err)
	}
	if _, err := ParseTemplate(fits + "x" + tail); err == nil {
		t.Error("a template for subjects of 513 bytes was accepted")
	}
}

func TestControlSubjectOfALongName(t *testing.T) {
	tmpl := defaultTemplate(t)
	seen := make(map[string]bool)
	for _, name := range []string{
		strings.Repeat("x", 105), strings.Repeat("x", 106), // the last that is spelt out, and the first that is not
		strings.Repeat("x", 112), strings.Repeat("schema.", 40), strings.Repeat("schema.", 41),
	} {
		subject := tmpl.ControlSubject(name)
		last := subject[strings.LastIndex(subject, ".")+1:]
		if !server.IsValidPublishSubject(subject) || len(last) > MaxToken || !covers(tmpl.Filter(), subject) {
			t.Errorf("ControlSubject of %d bytes = %q: not valid", len(name), subject)
		}
		if seen[subject] {
			t.Errorf("two names share the control subject %q", subject)
		}
		seen[subject] = true
	}
}

// awkward are aggregate IDs that naive subjects stumble over.
func awkward() []string {
	return []string{
		"", " ", "  ", ".", "..", "a.b", "a b", "a. b", "*", ">", "a.>", "a*",
		"\x00", "\x01", "\t", "\r\n", "line\r\nPUB x 0\r\n", "\x7f", "\xff",
		strings.Repeat("x", 1600), strings.Repeat("x", 1601),
		"🦀", "שלום", "订单", "é", "e\u0301",
		"%", "%2E", "%-", "%h", `"quoted"`, "it's", `back\slash`, "$JS.API", "$", "{topic}", "a,b", "a/b", "urn:a-b_c~d=e@f",
	}
}

func TestAwkwardValuesOnARealServer(t *testing.T) {
	srv := streamtest.Start(t)
	js := srv.JetStream(t)
	tmpl := defaultTemplate(t)
	str, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{tmpl.Filter()}, AllowDirect: true})
	if err != nil {
		t.Fatal(err)
	}
	encoder := Encoder{Template: tmpl, CloudEventsSource: "/test"}
	for i, raw := range awkward() {
		ev := testEvent(int64(i))
		ev.AggregateID = raw
		msg, err := encoder.Message(ev, "")
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		if _, err := js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatalf("%q, published to %s: %v", raw, msg.Subject, err)
		}
	}

	subjects := make(map[string]bool)
	for i, msg := range srv.Messages(t, "OUTBOX") {
		subjects[msg.Subject] = true
		// Requests that carry the subject in their own.
		if last, err := str.GetLastMsgForSubject(t.Context(), msg.Subject); err != nil || last.Sequence != msg.Sequence {
			t.Errorf("last message of %s: %v, %v; want sequence %d", msg.Subject, last, err, msg.Sequence)
		}
		consumer, err := str.OrderedConsumer(t.Context(), jetstream.OrderedConsumerConfig{FilterSubjects: []string{msg.Subject}})
		if err != nil {
			t.Errorf("consumer of %s: %v", msg.Subject, err)
		} else if got, err := consumer.Next(); err != nil || got.Subject() != msg.Subject {
			t.Errorf("consumer of %s: %v, %v", msg.Subject, got, err)
		}
		ev, err := Decode(msg.Header, msg.Data)
		if err != nil {
			t.Errorf("message %d: %v", i, err)
			continue
		}
		want := testEvent(int64(i))
		want.AggregateID = awkward()[i]
		compareEvents(t, &ev, want)
	}
	if got, want := len(subjects), len(awkward()); got != want {
		t.Errorf("%d values were stored under %d subjects", want, got)
	}
}

func TestAppendSubjectDoesNotAllocate(t *testing.T) {
	tmpl := defaultTemplate(t)
	ev := &Event{Topic: "orders", AggregateType: "order", AggregateID: "id with spaces"}
	dst := make([]byte, 0, MaxSubject)
	if got := testing.AllocsPerRun(100, func() { dst = tmpl.AppendSubject(dst[:0], ev) }); got != 0 {
		t.Errorf("AppendSubject made %v allocations, want 0", got)
	}
	if got := testing.AllocsPerRun(100, func() { _ = tmpl.Subject(ev) }); got != 1 {
		t.Errorf("Subject made %v allocations, want 1", got)
	}
}

func FuzzToken(f *testing.F) {
	for _, raw := range awkward() {
		f.Add(raw, raw+"x")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		tokenA, tokenB := EncodeToken(a), EncodeToken(b)
		if (tokenA == tokenB) != (a == b) {
			t.Errorf("%q and %q became %q and %q", a, b, tokenA, tokenB)
		}
		if len(tokenA) > MaxToken || strings.Contains(tokenA, ".") || !server.IsValidPublishSubject(tokenA) {
			t.Errorf("EncodeToken(%q) = %q: not one token of a subject", a, tokenA)
		}
		switch back, err := DecodeToken(tokenA); {
		case errors.Is(err, ErrHashed):
			if len(a) <= MaxToken/3 {
				t.Errorf("EncodeToken(%q) = %q: hashed without need", a, tokenA)
			}
		case err != nil || back != a:
			t.Errorf("DecodeToken(%q) = %q, %v; want %q", tokenA, back, err, a)
		}
		// Whatever decodes encodes to the same again.
		if raw, err := DecodeToken(a); err == nil && EncodeToken(raw) != a {
			t.Errorf("DecodeToken(%q) = %q, which encodes to %q", a, raw, EncodeToken(raw))
		}
	})
}

func FuzzSubject(f *testing.F) {
	for _, raw := range awkward() {
		f.Add(raw, raw, raw, raw)
	}
	tmpl, err := ParseTemplate("outbox.{topic}.{aggregate_type}.{aggregate_id}.{event_type}")
	if err != nil {
		f.Fatal(err)
	}
	control := tmpl.ControlSubject("outbox")
	f.Fuzz(func(t *testing.T, topic, aggregateType, aggregateID, eventType string) {
		ev := &Event{Topic: topic, AggregateType: aggregateType, AggregateID: aggregateID, EventType: eventType}
		subject := tmpl.Subject(ev)
		if !server.IsValidPublishSubject(subject) || len(subject) > MaxSubject {
			t.Errorf("Subject(%q, %q, %q, %q) = %q: not valid", topic, aggregateType, aggregateID, eventType, subject)
		}
		if !server.SubjectsCollide(subject, tmpl.Filter()) || strings.Count(subject, ".") != 4 {
			t.Errorf("Subject(%q, %q, %q, %q) = %q: outside of %q", topic, aggregateType, aggregateID, eventType, subject, tmpl.Filter())
		}
		if subject == control {
			t.Errorf("Subject(%q, %q, %q, %q) is the control subject", topic, aggregateType, aggregateID, eventType)
		}
	})
}

func BenchmarkAppendToken(b *testing.B) {
	for _, raw := range []string{"0195f7a2-7d6a-7c1e-8d3e-1f2a3b4c5d6e", "customer 42/orders", strings.Repeat("x", 200)} {
		b.Run(fmt.Sprintf("%.12s", raw), func(b *testing.B) {
			b.ReportAllocs()
			dst := make([]byte, 0, MaxToken)
			for b.Loop() {
				dst = AppendToken(dst[:0], raw)
			}
		})
	}
}

func defaultTemplate(tb testing.TB) Template {
	tb.Helper()
	tmpl, err := ParseTemplate(DefaultTemplate)
	if err != nil {
		tb.Fatal(err)
	}
	return tmpl
}
