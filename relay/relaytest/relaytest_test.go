package relaytest_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/relaytest"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// postgres is an outbox in a database of its own.
func postgres(t *testing.T) (*store.Outbox, *pgx.Conn) {
	t.Helper()
	dsn := storetest.NewDatabase(t)
	outbox, err := store.Open(dsn, store.Options{Retain: relay.DefaultRetain})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = outbox.Close(context.WithoutCancel(t.Context())) })
	if err := outbox.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return outbox, conn
}

func TestStores(t *testing.T) {
	t.Run("in memory", func(t *testing.T) {
		relaytest.TestStore(t, func(*testing.T) relaytest.StoreUnderTest {
			outbox := relaytest.NewOutbox()
			return relaytest.StoreUnderTest{
				Store:   outbox,
				Insert:  func(_ *testing.T, events ...store.Event) { outbox.Insert(events...) },
				Pending: func(*testing.T) []int64 { return outbox.Pending() },
			}
		})
	})
	t.Run("in Postgres", func(t *testing.T) {
		relaytest.TestStore(t, func(t *testing.T) relaytest.StoreUnderTest {
			t.Helper()
			outbox, conn := postgres(t)
			return relaytest.StoreUnderTest{
				Store: relay.StoreOf(outbox),
				Insert: func(t *testing.T, events ...store.Event) {
					t.Helper()
					err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return outbox.Table().Insert(t.Context(), tx, events...) })
					if err != nil {
						t.Fatal(err)
					}
				},
				Pending: func(t *testing.T) []int64 {
					t.Helper()
					rows, err := conn.Query(t.Context(), `select seq from outbox order by seq`)
					if err != nil {
						t.Fatal(err)
					}
					seqs, err := pgx.CollectRows(rows, pgx.RowTo[int64])
					if err != nil {
						t.Fatal(err)
					}
					return seqs
				},
			}
		})
	})
}

func TestPublishers(t *testing.T) {
	t.Run("in memory", func(t *testing.T) {
		relaytest.TestPublisher(t, func(*testing.T) relaytest.PublisherUnderTest {
			s := relaytest.NewStream()
			return relaytest.PublisherUnderTest{
				New: func(*testing.T) relay.Publisher { return s.Publisher() },
				Stored: func(*testing.T) (payloads []string) {
					for _, seq := range s.Stored() {
						payloads = append(payloads, strconv.FormatInt(seq, 10))
					}
					return payloads
				},
			}
		})
	})
	for name, noBatches := range map[string]bool{"to JetStream": false, "to JetStream, without batches": true} {
		t.Run(name, func(t *testing.T) {
			relaytest.TestPublisher(t, func(t *testing.T) relaytest.PublisherUnderTest {
				t.Helper()
				server := streamtest.Start(t)
				return relaytest.PublisherUnderTest{
					New: func(t *testing.T) relay.Publisher {
						t.Helper()
						p, err := publisher.New(publisher.Options{
							Connect: stream.ConnectOptions{URL: server.URL()}, Setup: stream.Setup{Create: true}, NoBatches: noBatches,
						})
						if err != nil {
							t.Fatal(err)
						}
						t.Cleanup(p.Close)
						return relay.PublisherOf(p)
					},
					Stored: func(t *testing.T) (payloads []string) {
						t.Helper()
						for _, m := range server.Messages(t, stream.DefaultStream) {
							payloads = append(payloads, string(m.Data))
						}
						return payloads
					},
				}
			})
		})
	}
}

func TestElectors(t *testing.T) {
	for name, newElector := range map[string]func(t *testing.T) relay.Elector{
		"in memory": func(*testing.T) relay.Elector { return relaytest.NewElector() },
		"always":    func(*testing.T) relay.Elector { return election.Always{} },
		"advisory lock": func(t *testing.T) relay.Elector {
			t.Helper()
			outbox, _ := postgres(t)
			return relay.AdvisoryLock(outbox, relay.DefaultAdvisoryLock, nil)
		},
		"key-value entry": func(t *testing.T) relay.Elector {
			t.Helper()
			url := streamtest.Start(t).URL()
			elector, err := election.NewKeyValue(func(context.Context) (*nats.Conn, error) { return nats.Connect(url) }, election.KeyValueOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return elector
		},
	} {
		t.Run(name, func(t *testing.T) { relaytest.TestElector(t, newElector) })
	}
}

// A relay without Postgres and NATS, as in a test of the program that has it built in.
func Example() {
	outbox, broker, elector := relaytest.NewOutbox(), relaytest.NewStream(), relaytest.NewElector()
	ctx, stop := context.WithCancel(context.Background())
	r, err := relay.Assemble(relay.Parts{Store: outbox, Publisher: broker.Publisher(), Elector: elector}, relay.Options{
		Hooks: relay.Hooks{Published: func(relay.Published) { stop() }},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	seqs := outbox.Insert(store.Event{Topic: "orders", AggregateType: "Order", AggregateID: "17", EventType: "OrderPlaced"})
	if err := r.Run(ctx); err != nil { // Until the event is published.
		fmt.Println(err)
	}
	fmt.Println("published:", slices.Equal(broker.Stored(), seqs), "pending:", len(outbox.Pending()))

	// Output:
	// published: true pending: 0
}
