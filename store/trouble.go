package store

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Trouble is why a leader cannot publish, as it last said.
type Trouble struct {
	// Text is the reason; empty for none.
	Text string
	// For is how long ago it began, and Age how long ago the leader last said so: it says so again every few seconds.
	For, Age time.Duration
}

// troubleMost is how many bytes of a reason are kept.
const troubleMost = 2000

// Report records why the leader cannot publish, since so long ago, for those who look at the database only; an empty reason
// records that it can. Like RoundTrip it works on the session, for the leader only. Whoever has locked the record is not
// waited for: then nothing is recorded.
func (t *Term) Report(ctx context.Context, reason string, since time.Duration) error {
	reason = recordable(reason)
	err := t.outbox.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
		if err := t.inTerm(); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, `
with ours as (select stream from only `+t.outbox.table.relay()+` where stream = $1 and term = $2 for update skip locked)
update only `+t.outbox.table.relay()+` r
   set trouble = nullif($3, ''), trouble_at = case when $3 <> '' then clock_timestamp() end,
       trouble_since = case when $3 <> '' then clock_timestamp() - $4::interval end
  from ours where r.stream = ours.stream`, t.stream, t.Number, reason, since)
		return err
	})
	return t.outbox.explain("record why nothing is published", err)
}

// recordable is a text as a column takes it: not too long, and without what Postgres refuses.
func recordable(text string) string {
	if len(text) > troubleMost {
		text = text[:troubleMost] + "…"
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "")
}
