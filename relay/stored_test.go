package relay

import (
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

func TestTellStored(t *testing.T) {
	created := time.Now().Add(-time.Minute)
	row := &store.Row{Seq: 7, EventType: "OrderPaid", Data: []byte("four"), Headers: []byte(`{"traceparent": "x"}`), CreatedAt: created}
	leader := &term{Relay: &Relay{hooks: Hooks{}.orNop()}, core: &core{held: map[int64]*item{7: {row: row}}}}
	outcome, unknown := publisher.Outcome{Seq: 7, Duplicate: true}, publisher.Outcome{Seq: 8}
	if n := testing.AllocsPerRun(100, func() { leader.tellStored(&outcome) }); n != 0 {
		t.Errorf("without a hook, an event costs %v allocations, want 0", n)
	}
	var told []Stored
	leader.hooks.Stored = func(s Stored) { told = append(told, s) }
	leader.tellStored(&outcome)
	leader.tellStored(&unknown)
	if len(told) != 1 || told[0].Seq != 7 || told[0].Size != 4 || !told[0].CreatedAt.Equal(created) || !told[0].Duplicate || string(told[0].Headers) != string(row.Headers) {
		t.Errorf("told of %+v, want seq 7 only", told)
	}
}
