package relay

import (
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/stream/publisher"
)

// Stored is what [Hooks.Stored] is told.
type Stored struct {
	Seq                                          int64
	ID                                           uuid.UUID
	Topic, AggregateType, AggregateID, EventType string
	// Headers are the row's own: a JSON object; nil for none. They must not be kept or changed.
	Headers []byte
	// Size is the payload's in bytes.
	Size int
	// CreatedAt is when the event was inserted, by the database's clock.
	CreatedAt time.Time
	// Duplicate tells that the stream had a message of its id: from an earlier attempt, or another row's.
	Duplicate bool
}

// tellStored tells who wants to know of each event that this one is stored.
func (t *term) tellStored(o *publisher.Outcome) {
	if t.hooks.Stored == nil {
		return
	}
	if it := t.core.held[o.Seq]; it != nil {
		r := it.row
		t.hooks.Stored(Stored{r.Seq, r.ID, r.Topic, r.AggregateType, r.AggregateID, r.EventType, r.Headers, len(r.Data), r.CreatedAt, o.Duplicate})
	}
}
