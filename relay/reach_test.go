package relay

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store"
)

func TestReach(t *testing.T) {
	for name, test := range map[string]struct {
		answers func(error) bool
		err     error
		want    bool
	}{
		"Postgres is fine":            {postgresAnswers, nil, true},
		"Postgres lacks the tables":   {postgresAnswers, fmt.Errorf("check: %w", store.ErrNoTable), true},
		"Postgres lacks a GRANT":      {postgresAnswers, fmt.Errorf("check: %w", store.ErrPrivilege), true},
		"Postgres goes elsewhere":     {postgresAnswers, fmt.Errorf("stand: %w", store.ErrOtherStream), true},
		"Postgres is away":            {postgresAnswers, fmt.Errorf("cannot reach Postgres: %w", io.EOF), false},
		"Postgres does not answer":    {postgresAnswers, fmt.Errorf("round trip: %w", store.ErrNoAnswer), false},
		"NATS is fine":                {natsAnswers, nil, true},
		"NATS is away":                {natsAnswers, nats.ErrNoServers, false},
		"NATS refuses the password":   {natsAnswers, nats.ErrAuthorization, false},
		"NATS breaks off":             {natsAnswers, io.EOF, false},
		"no JetStream":                {natsAnswers, nats.ErrNoResponders, false},
		"JetStream has no such thing": {natsAnswers, &jetstream.APIError{Code: 404, ErrorCode: 10059}, true},
		"the stream is full":          {natsAnswers, &jetstream.APIError{Code: 503, ErrorCode: 10077, Description: "maximum messages exceeded"}, true},
		"nobody knows":                {natsAnswers, errors.New("what?"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.answers(test.err); got != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
