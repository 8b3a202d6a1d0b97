package publisher

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/wire"
)

// deafPublisher has a connection on which nothing arrives but what a test passes to answered.
func deafPublisher(tb testing.TB) *Publisher {
	tb.Helper()
	p, err := New(Options{Connect: stream.ConnectOptions{URL: "127.0.0.1:1"}, AckTimeout: time.Hour})
	if err != nil {
		tb.Fatal(err)
	}
	p.session = &Session{p: p}
	p.link = link{conn: &nats.Conn{}, dialer: &wire.Dialer{}, replies: "_INBOX.1."}
	p.known.highest, p.known.proved = 100, time.Now()
	p.batches.taken, p.batches.flow, p.limits.maxPayload, p.limits.maxMessage = true, batchFlow, 1<<20, 1000
	tb.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, timer := range []*time.Timer{p.timer, p.batches.timer} {
			if timer != nil {
				timer.Stop()
			}
		}
	})
	return p
}

// sent is the reply subject of an event that was sent by itself.
func sent(tb testing.TB, p *Publisher, seq int64) string {
	tb.Helper()
	_, _, reply, _, err := p.expect(p.session, seq, sizesOf(2000, 300), 0)
	if err != nil {
		tb.Fatal(err)
	}
	return reply
}

// sentOrdered is the reply subject of an event that was sent in an ordered batch.
func sentOrdered(tb testing.TB, p *Publisher, seq int64) (b *batch, reply string) {
	tb.Helper()
	p.latest = latest{head: 300, mark: 1}
	b, _, err := p.enter(p.session, seq, 2000)
	if err != nil {
		tb.Fatal(err)
	}
	return b, string(b.reply())
}

// What is left out has a default.
func TestDefaults(t *testing.T) {
	p, err := New(Options{Connect: stream.ConnectOptions{URL: "127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Stream(); got != stream.DefaultStream {
		t.Errorf("the stream is %q, want %q", got, stream.DefaultStream)
	}
	if got := p.options.Encoder.Template.String(); got != stream.DefaultTemplate {
		t.Errorf("the template is %q, want %q", got, stream.DefaultTemplate)
	}
	if got := p.options.AckTimeout; got != DefaultAckTimeout {
		t.Errorf("the acknowledgement may take %v, want %v", got, DefaultAckTimeout)
	}
}

// The codes of batches must still mean what their comments say.
func TestBatchCodesAreThoseOfTheServer(t *testing.T) {
	for code, name := range map[int]server.ErrorIdentifier{
		codeBatchDisabled:   server.JSBatchPublishDisabledErr,
		codeBatchUnknown:    server.JSBatchPublishUnknownBatchIDErr,
		codeBatchesInFlight: server.JSBatchPublishTooManyInflight,
	} {
		if got := server.ApiErrors[name].ErrCode; int(got) != code {
			t.Errorf("%d is %d on this server", code, got)
		}
	}
}

// Whatever seq an event has, its outcome is its own: 0 is one, too.
func TestOutcomesOfAnySeq(t *testing.T) {
	p := deafPublisher(t)
	seqs := []int64{0, -1, math.MinInt64, math.MaxInt64}
	for i, seq := range seqs {
		p.answered(&nats.Msg{Subject: sent(t, p, seq), Data: []byte(`{"stream":"OUTBOX","seq":` + strconv.Itoa(101+i) + `}`)})
	}
	outcomes, trouble := p.Collect(nil)
	if trouble != nil || len(outcomes) != len(seqs) {
		t.Fatalf("got %+v and trouble %v, want %d outcomes", outcomes, trouble, len(seqs))
	}
	for i, o := range outcomes {
		if o.Seq != seqs[i] || o.Err != nil || o.Stored != uint64(101+i) {
			t.Errorf("got %+v, want that event %d is stored at %d", o, seqs[i], 101+i)
		}
	}
}

// Trouble of the connection is no event's outcome, and the events in flight are in doubt.
func TestTroubleIsApart(t *testing.T) {
	p := deafPublisher(t)
	sent(t, p, 0)
	p.failAll(&wire.Dialer{}, nats.ErrStaleConnection)
	if outcomes, trouble := p.Collect(nil); len(outcomes) > 0 || trouble != nil {
		t.Errorf("a former connection told %+v and %v", outcomes, trouble)
	}
	p.failAll(p.link.dialer, nats.ErrDisconnected)
	p.failAll(p.link.dialer, nats.ErrPermissionViolation)
	p.failAll(p.link.dialer, nats.ErrDisconnected)
	outcomes, trouble := p.Collect(nil)
	if len(outcomes) != 1 || outcomes[0].Seq != 0 || outcomes[0].Err == nil || !outcomes[0].Err.Ambiguous() {
		t.Errorf("got %+v, want that event 0 is in doubt", outcomes)
	}
	if trouble == nil || !errors.Is(trouble, nats.ErrPermissionViolation) {
		t.Errorf("got trouble %v, want what a person has to mend", trouble)
	}
	if _, again := p.Collect(nil); again != nil {
		t.Errorf("the trouble is told twice: %v", again)
	}
}

// An event that is not stored never has an outcome with a nil error.
func TestUnstoredWithoutAFault(t *testing.T) {
	if o := unstored(1, nil); o.Err == nil || !o.Err.Ambiguous() || o.Err.Error() == "" {
		t.Errorf("got %+v, want an outcome in doubt", o)
	}
	var none *jetstream.APIError
	if e := stream.Classify(none); e == nil || !e.Ambiguous() || !errors.Is(e, jetstream.ErrInvalidJSAck) || e.Error() == "" {
		t.Errorf("an API error without a value is classified as %v", e)
	}
}

// An answer counts if it is our stream's, well formed, and above what was acknowledged before.
func TestAnswerToAnEvent(t *testing.T) {
	for _, test := range []struct {
		name, data string
		stored     uint64 // 0 for an event that is in doubt.
		duplicate  bool
		fault      stream.Fault
		want       string // In the error.
		lost       bool
	}{
		{name: "an acknowledgement", data: `{"stream":"OUTBOX","seq":101}`, stored: 101},
		{name: "a duplicate", data: `{"stream":"OUTBOX","seq":7,"duplicate":true}`, stored: 7, duplicate: true},
		{name: "another stream", data: `{"stream":"OTHER","seq":101}`, fault: stream.FaultSetup, want: `another stream, "OTHER"`},
		{name: "another stream's refusal", data: `{"error":{"code":400,"err_code":10060},"stream":"OTHER","seq":0}`, fault: stream.FaultSetup, want: `another stream, "OTHER"`},
		{name: "another stream's duplicate", data: `{"stream":"OTHER","seq":101,"duplicate":true}`, fault: stream.FaultSetup, want: `another stream, "OTHER"`},
		{name: "a duplicate in process", data: `{"error":{"code":409,"err_code":10158,"description":"duplicate message id is in process"},"stream":"OUTBOX","seq":0}`, want: "in process"},
		{name: "no stream", data: `{"seq":101}`, want: "no stream"},
		{name: "sequence 0", data: `{"stream":"OUTBOX"}`, want: "although it had given 100", lost: true},
		{name: "a sequence known", data: `{"stream":"OUTBOX","seq":100}`, want: "although it had given 100", lost: true},
		{name: "a duplicate of nothing", data: `{"stream":"OUTBOX","duplicate":true}`, want: "sequence 0"},
		{name: "a negative sequence", data: `{"stream":"OUTBOX","seq":-1}`, want: "malformed"},
		{name: "a flow ack", data: `{"type":"ack","seq":1,"msgs":500}`, want: "malformed"},
		{name: "an error without one", data: `{"type":"err","seq":1}`, want: "malformed"},
		{name: "a batch's", data: `{"stream":"OUTBOX","seq":101,"batch":"x","count":1}`, want: "malformed"},
		{name: "an empty error", data: `{"stream":"OUTBOX","seq":101,"error":{}}`, want: "API error"},
		{name: "nothing", data: ``, want: "malformed"},
		{name: "null", data: `null`, want: "no stream"},
		{name: "text", data: strings.Repeat("\xff", 5000), want: "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := deafPublisher(t)
			p.answered(&nats.Msg{Subject: sent(t, p, 1), Data: []byte(test.data)})
			outcomes, trouble := p.Collect(nil)
			if len(outcomes) != 1 {
				t.Fatalf("got %d outcomes", len(outcomes))
			}
			o := outcomes[0]
			if test.stored > 0 {
				if o.Err != nil || o.Stored != test.stored || o.Duplicate != test.duplicate || trouble != nil {
					t.Errorf("got %+v and trouble %v, want that it is stored at %d", o, trouble, test.stored)
				}
				return
			}
			if o.Err == nil || !o.Err.Ambiguous() || o.Err.Fault != test.fault || o.Stored != 0 || !strings.Contains(o.Err.Error(), test.want) || len(o.Err.Error()) > 400 {
				t.Fatalf("got %+v, want doubt that is a fault of the %v with %q", o, test.fault, test.want)
			}
			var lost *stream.LostError
			if got := errors.As(o.Err, &lost); got != test.lost || (trouble != nil) != test.lost {
				t.Errorf("lost is %v, and trouble %v; want %v of both", got, trouble, test.lost)
			}
			// What is lost is put back before anything else is sent.
			_, _, _, _, err := p.expect(p.session, 2, sizes{}, 0)
			if _, _, errOrdered := p.enter(p.session, 2, 1); (err != nil) != test.lost || (errOrdered != nil) != test.lost || err != nil && stream.Classify(err).Ambiguous() {
				t.Errorf("the next event: %v, in an ordered batch %v", err, errOrdered)
			}
		})
	}
}

// The same of ordered batches.
func TestAnswerToABatch(t *testing.T) {
	type check struct {
		name, data string
		stored     int    // How many of 3 events are stored; the others are in doubt, or still pending.
		pending    bool   // The others are pending.
		want       string // In the errors of the others, or in the trouble.
		trouble    bool
	}
	for _, test := range []check{
		{name: "settings", data: `{"type":"ack","seq":0,"msgs":500}`, pending: true},
		{name: "flow", data: `{"type":"ack","seq":2,"msgs":500}`, stored: 2, pending: true},
		{name: "flow beyond", data: `{"type":"ack","seq":4,"msgs":500}`, want: "message 4 of 3"},
		{name: "flow with an error", data: `{"type":"ack","seq":2,"error":{"code":1}}`, want: "malformed"},
		{name: "count", data: `{"stream":"OUTBOX","seq":103,"batch":"ID","count":3}`, stored: 3},
		{name: "other writers", data: `{"stream":"OUTBOX","seq":150,"batch":"ID","count":3}`, stored: 3},
		{name: "count beyond", data: `{"stream":"OUTBOX","seq":104,"batch":"ID","count":4}`, want: "counts 4 messages of 3"},
		{name: "count of another", data: `{"stream":"OUTBOX","seq":103,"batch":"x","count":3}`, want: `batch "x"`},
		{name: "count of none", data: `{"stream":"OUTBOX","seq":103,"count":3}`, want: `batch ""`},
		{name: "another stream", data: `{"stream":"OTHER","seq":103,"batch":"ID","count":3}`, want: `another stream, "OTHER"`},
		{name: "no stream", data: `{"seq":103,"batch":"ID","count":3}`, want: "no stream"},
		{name: "a sequence known", data: `{"stream":"OUTBOX","seq":100,"batch":"ID","count":3}`, want: "although it had given 100", trouble: true},
		{name: "one skipped", data: `{"stream":"OUTBOX","seq":102,"batch":"ID","count":3}`, stored: 3, want: "at most 2 of 3", trouble: true},
		{name: "all skipped", data: `{"stream":"OUTBOX","seq":0,"batch":"ID","count":3}`, stored: 3, want: "at most 0 of 3", trouble: true},
		{name: "error without one", data: `{"type":"err","seq":1}`, want: "without an error object"},
		{name: "error beyond", data: `{"type":"err","seq":5,"error":{"code":400,"err_code":10054}}`, want: "message 5 of 3"},
		{name: "error of none", data: `{"type":"err","seq":0,"error":{"code":400,"err_code":10054}}`, want: "message 0 of 3"},
		{name: "unknown type", data: `{"type":"x"}`, want: `type "x"`},
		{name: "null", data: `null`, want: "malformed"},
		{name: "empty", data: `{}`, want: "malformed"},
		{name: "text", data: `hello`, want: "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := deafPublisher(t)
			var b *batch
			var reply string
			for seq := range int64(3) {
				b, reply = sentOrdered(t, p, seq)
			}
			p.answered(&nats.Msg{Subject: reply, Data: []byte(strings.ReplaceAll(test.data, "ID", b.id))})
			outcomes, trouble := p.Collect(nil)
			if want := 3; !test.pending && len(outcomes) != want || test.pending && len(outcomes) != test.stored {
				t.Fatalf("got %d outcomes", len(outcomes))
			}
			for i, o := range outcomes {
				switch {
				case o.Seq != int64(i):
					t.Errorf("outcome %d is of event %d", i, o.Seq)
				case i < test.stored && o.Err != nil:
					t.Errorf("event %d: %v", i, o.Err)
				case i >= test.stored && (o.Err == nil || !o.Err.Ambiguous() || o.Retry || !strings.Contains(o.Err.Error(), test.want)):
					t.Errorf("event %d: %+v, want doubt with %q", i, o, test.want)
				}
			}
			if (trouble != nil) != test.trouble || trouble != nil && !strings.Contains(trouble.Error(), test.want) {
				t.Errorf("got trouble %v, want %v with %q", trouble, test.trouble, test.want)
			}
			if trouble == nil {
				return
			}
			_, skipped := errors.AsType[*SkippedError](trouble)
			if skipped != (test.stored == 3) {
				t.Errorf("got trouble %v", trouble)
			}
			if skipped && p.session.BatchWindow() != 0 {
				t.Error("ordered batches go on, which do not tell who is skipped")
			}
		})
	}
}

// An answer that does not count, after all of a batch has been acknowledged, is trouble.
func TestAnswerAfterTheLastFlowAck(t *testing.T) {
	p := deafPublisher(t)
	b, reply := sentOrdered(t, p, 1)
	p.answered(&nats.Msg{Subject: reply, Data: []byte(`{"type":"ack","seq":1,"msgs":1}`)})
	p.answered(&nats.Msg{Subject: reply, Data: []byte(`{"stream":"OTHER","seq":103,"batch":"` + b.id + `","count":1}`)})
	outcomes, trouble := p.Collect(nil)
	if len(outcomes) != 1 || outcomes[0].Err != nil || trouble == nil || trouble.Fault != stream.FaultSetup {
		t.Errorf("got %+v and trouble %v, want a fault of the set-up", outcomes, trouble)
	}
}

// How many messages the server acknowledges at once is not more than it was asked to.
func TestFlowIsBounded(t *testing.T) {
	p := deafPublisher(t)
	_, reply := sentOrdered(t, p, 1)
	p.answered(&nats.Msg{Subject: reply, Data: []byte(`{"type":"ack","seq":0,"msgs":18446744073709551615}`)})
	if got := p.session.BatchWindow(); got <= 0 || got > batchFlow*batchAcks {
		t.Errorf("%d events may be in flight", got)
	}
}

// A refusal for the size tells the sizes.
func TestRefusalTellsTheSizes(t *testing.T) {
	refusal := `{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"},"stream":"OUTBOX","seq":0}`
	want := "payload of 2000 bytes with 300 bytes of headers exceeds the stream's max_msg_size of 1000"
	p := deafPublisher(t)
	p.answered(&nats.Msg{Subject: sent(t, p, 1), Data: []byte(refusal)})
	sentOrdered(t, p, 2)
	_, reply := sentOrdered(t, p, 3)
	p.session.Flush()
	p.answered(&nats.Msg{Subject: reply, Data: []byte(`{"type":"err","seq":2,"error":{"code":400,"err_code":10054}}`)})
	p.mu.Lock()
	p.batches.end(p.batches.open, p.batches.open.fault)
	p.mu.Unlock()
	outcomes, _ := p.Collect(nil)
	if len(outcomes) != 3 {
		t.Fatalf("got %d outcomes", len(outcomes))
	}
	for _, o := range []Outcome{outcomes[0], outcomes[2]} {
		if o.Err == nil || o.Err.Error() != want || !o.Err.Permanent || o.Err.Code != 10054 || o.Err.Ambiguous() {
			t.Errorf("event %d: %+v, want a permanent refusal: %s", o.Seq, o.Err, want)
		}
	}
	if o := outcomes[1]; o.Err == nil || o.Err.Permanent || o.Err.Fault != stream.FaultWeather {
		t.Errorf("event 2, which was not refused: %+v", o.Err)
	}
}

// FuzzAnswers passes any answers to the publisher: to an event by itself, and to an ordered batch of three. Nothing
// crashes, each event has one outcome at most, and none is reported stored by an answer that does not say so.
func FuzzAnswers(f *testing.F) {
	for _, data := range []string{
		`{"stream":"OUTBOX","seq":101}`, `{"stream":"OUTBOX","seq":7,"duplicate":true}`, `{"stream":"OTHER","seq":101}`, `{"type":"err","seq":1}`,
		`{"type":"ack","seq":2,"msgs":500}`, `{"type":"gap","last_seq":1,"seq":2}`, `{"stream":"OUTBOX","seq":103,"batch":"ID","count":3}`, `{}`, `null`, `[]`, `"`, ``,
		`{"error":{"code":503,"err_code":10077,"description":"message too large"},"stream":"OUTBOX"}`, `{"type":"err","seq":2,"error":{"code":400,"err_code":10208}}`,
		`{"stream":"OUTBOX","seq":1e3}`, `{"STREAM":"OUTBOX","Seq":101}`, `{"error":null,"stream":"OUTBOX","seq":101,"seq":0}`,
	} {
		for _, suffix := range []string{"", "0", ".3.$FI", ".x.$FI", "$FI", ".18446744073709551616.1.$FI"} {
			f.Add(suffix, []byte(data), []byte(data), false)
		}
	}
	f.Add("", []byte{}, []byte{}, true)
	f.Fuzz(func(t *testing.T, suffix string, first, second []byte, noResponders bool) {
		p := deafPublisher(t)
		alone := sent(t, p, 0)
		told := map[int64]int{}
		says := map[int64]bool{}
		header := nats.Header{}
		if noResponders {
			header.Set("Status", "503")
		}
		take := func() {
			outcomes, _ := p.Collect(nil)
			for _, o := range outcomes {
				if told[o.Seq]++; told[o.Seq] > 1 {
					t.Errorf("event %d has two outcomes", o.Seq)
				}
				if o.Err == nil && !says[o.Seq] {
					t.Errorf("event %d is said to be stored by %q, %q", o.Seq, first, second)
				}
				if o.Err != nil && o.Err.Error() == "" {
					t.Errorf("event %d failed for no reason", o.Seq)
				}
			}
		}
		says[0] = acknowledges(first) || acknowledges(second)
		for _, data := range [][]byte{first, second} {
			p.answered(&nats.Msg{Subject: alone + suffix, Header: header, Data: data})
			p.answered(&nats.Msg{Subject: alone, Header: header, Data: data})
		}
		take()
		p.known.lost = nil
		var b *batch
		var reply string
		for seq := int64(1); seq <= 3; seq++ {
			b, reply = sentOrdered(t, p, seq)
		}
		for _, data := range [][]byte{first, second} {
			data = bytes.ReplaceAll(data, []byte("ID"), []byte(b.id))
			for seq := int64(1); seq <= 3; seq++ {
				says[seq] = says[seq] || acknowledgesBatch(data, b.id, uint64(seq))
			}
			p.answered(&nats.Msg{Subject: b.replies + suffix, Header: header, Data: data})
			p.answered(&nats.Msg{Subject: reply, Header: header, Data: data})
		}
		take()
	})
}

// acknowledges says whether an answer says that our stream has the event, in the simplest words.
func acknowledges(data []byte) bool {
	var a struct {
		Stream    string
		Seq       uint64
		Duplicate bool
		Error     *struct{}
		Type      string
	}
	return json.Unmarshal(data, &a) == nil && a.Stream == stream.DefaultStream && a.Error == nil && a.Type == "" && (a.Seq > 100 || a.Duplicate && a.Seq > 0)
}

// acknowledgesBatch says likewise whether an answer to a batch says so of the event at this place.
func acknowledgesBatch(data []byte, id string, place uint64) bool {
	var a struct {
		Stream string
		Seq    uint64
		Error  *struct{}
		Type   string
		Batch  string
		Count  uint64
	}
	if json.Unmarshal(data, &a) != nil || a.Error != nil {
		return false
	}
	if a.Type == "ack" {
		return a.Seq >= place && a.Seq <= 3 && (a.Stream == "" || a.Stream == stream.DefaultStream)
	}
	return a.Type == "" && a.Stream == stream.DefaultStream && a.Batch == id && a.Count >= place && a.Count <= 3
}
