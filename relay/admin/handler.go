package admin

import (
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/go-outbox/go-outbox/relay"
)

// Report is the JSON that /healthz and /readyz answer with.
type Report struct {
	Identity
	// Ready tells that the relay publishes, or that another relay leads and this one could. If not, Trouble says why.
	Ready bool `json:"ready"`
	// State is what the relay is doing, since Since.
	State relay.State `json:"state"`
	Since time.Time   `json:"since"`
	// Standby tells that another relay is known to lead. Fit tells that this one does not lead and could: it has just reached
	// Postgres, the broker and the stream.
	Standby bool `json:"standby"`
	Fit     bool `json:"fit"`
	// Term is the number of the term, 0 while not leading.
	Term int64 `json:"term"`
	// Publishing tells that this relay leads and can publish.
	Publishing bool `json:"publishing"`
	// Trouble is why the relay cannot publish, or could not if it were elected; empty for nothing.
	Trouble string `json:"trouble,omitempty"`
	// Pause is the one that a person has ordered, of which the relay is no less ready. Nil for none.
	Pause *Pause `json:"pause,omitempty"`
	// Postgres and NATS tell that the relay reached them when it last needed them.
	Postgres bool `json:"postgres"`
	NATS     bool `json:"nats"`
	// Published counts the events that this relay saw acknowledged.
	Published int64 `json:"published"`
}

// Pause is why a person has the relays publish nothing, who that is, and since when it is so.
type Pause struct {
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	Since  time.Time `json:"since"`
}

const index = `Go Outbox relay

/healthz  200 unless the relay has stopped or hangs
/readyz   200 if it publishes, or if another leads and it could; otherwise 503
/metrics  for Prometheus
`

// NewHandler returns the handler of a relay: self is who it is, status returns its state, and metrics is served at /metrics.
// Status is called for each request, by several goroutines at once.
func NewHandler(self Identity, status func() relay.Status, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, index) // A client that has gone needs no answer.
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		s := status()
		report(w, self, s, s.Alive())
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s := status()
		report(w, self, s, s.Ready())
	})
	mux.Handle("GET /metrics", metrics)
	return mux
}

func report(w http.ResponseWriter, self Identity, s relay.Status, good bool) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !good {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	var pause *Pause
	if p := s.Pause; p != nil {
		pause = &Pause{p.Reason, p.By, p.Since}
	}
	_ = json.NewEncoder(w).Encode(Report{ // A client that has gone needs no answer.
		Identity:   self,
		Ready:      s.Ready(),
		State:      s.State,
		Since:      s.Since,
		Standby:    s.Standby,
		Fit:        s.Fit,
		Term:       s.Term,
		Publishing: s.Publishing,
		Trouble:    s.Trouble,
		Pause:      pause,
		Postgres:   s.Postgres,
		NATS:       s.NATS,
		Published:  s.Published,
	})
}
