package harness

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Backup is a stream as `nats stream backup` saves it.
type Backup struct {
	// Head has the stream's config and state, as both requests have them.
	head   map[string]json.RawMessage
	chunks [][]byte
}

// NewBackup saves a stream. The server sends it in chunks, each of which is acknowledged, and ends with an empty one.
func NewBackup(ctx context.Context, js jetstream.JetStream, name string) (*Backup, error) {
	nc := js.Conn()
	inbox := nc.NewInbox()
	chunks, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer chunks.Unsubscribe() //nolint:errcheck // The connection may be gone.
	b := &Backup{}
	if b.head, err = ask(ctx, nc, "$JS.API.STREAM.SNAPSHOT."+name, map[string]any{"deliver_subject": inbox, "no_consumers": true}); err != nil {
		return nil, err
	}
	for {
		msg, err := chunks.NextMsgWithContext(ctx)
		if err != nil {
			return nil, fmt.Errorf("back up stream %s: %w", name, err)
		}
		if len(msg.Data) == 0 {
			if status := msg.Header.Get("Status"); status != "" && status != "204" {
				return nil, fmt.Errorf("back up stream %s: %s %s", name, status, msg.Header.Get("Description"))
			}
			return b, nil
		}
		b.chunks = append(b.chunks, msg.Data)
		if msg.Reply != "" {
			if err := msg.Respond(nil); err != nil {
				return nil, err
			}
		}
	}
}

// Restore puts a stream back that was deleted, as `nats stream restore` does. It has the creation time that it had.
func (b *Backup) Restore(ctx context.Context, js jetstream.JetStream, name string) error {
	nc := js.Conn()
	answer, err := ask(ctx, nc, "$JS.API.STREAM.RESTORE."+name, map[string]any{"config": b.head["config"], "state": b.head["state"]})
	if err != nil {
		return err
	}
	var to string
	if err := json.Unmarshal(answer["deliver_subject"], &to); err != nil {
		return err
	}
	for i, chunk := range b.chunks {
		if err := send(ctx, nc, to, chunk); err != nil {
			return fmt.Errorf("chunk %d of %d: %w", i+1, len(b.chunks), err)
		}
	}
	if err := send(ctx, nc, to, nil); err != nil {
		return err
	}
	var was jetstream.StreamState
	if err := json.Unmarshal(b.head["state"], &was); err != nil {
		return err
	}
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return err
	}
	if is := stream.CachedInfo().State; is.Msgs < was.Msgs || is.LastSeq < was.LastSeq {
		return fmt.Errorf("restore: the stream has %d messages up to %d, and had %d up to %d", is.Msgs, is.LastSeq, was.Msgs, was.LastSeq)
	}
	return nil
}

// send sends a part of a backup, or nil for its end.
func send(ctx context.Context, nc *nats.Conn, to string, chunk []byte) error {
	msg, err := nc.RequestWithContext(ctx, to, chunk)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if len(msg.Data) == 0 {
		return nil
	}
	_, err = answerOf(msg.Data)
	return err
}

// ask makes a request of JetStream's API.
func ask(ctx context.Context, nc *nats.Conn, subject string, request any) (map[string]json.RawMessage, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	msg, err := nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", subject, err)
	}
	return answerOf(msg.Data)
}

// answerOf reads an answer of JetStream's API.
func answerOf(data []byte) (answer map[string]json.RawMessage, err error) {
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, err
	}
	if refusal := answer["error"]; refusal != nil {
		return nil, fmt.Errorf("refused: %s", refusal)
	}
	return answer, nil
}
