package doctor

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
)

// examineAbsentStream examines the stream that the relay would create.
func (d *doctor) examineAbsentStream(ctx context.Context, connect stream.ConnectOptions, js jetstream.JetStream, setup stream.Setup, asides *aside) {
	const check = CheckStream
	var rehearsal stream.Rehearsal
	err := asides.ask(ctx, func(ctx context.Context) (err error) {
		rehearsal, err = setup.Rehearse(ctx, js)
		return err
	})
	if errors.Is(err, nats.ErrPermissionViolation) {
		d.fail(check, fmt.Sprintf("let the relay's NATS user publish to %sSTREAM.CREATE.%s, or create the stream", connect.API(), setup.Stream),
			"%q does not exist and cannot be created", setup.Stream)
		return
	}
	subject := setup.Template.StreamSubject()
	if other, err := js.StreamNameBySubject(ctx, subject); err == nil {
		d.fail(check, "name that stream, or give the subject template another first token",
			"%q does not exist and cannot be created, since stream %q listens on subjects of %q", setup.Stream, other, subject)
		return
	}
	for _, obstacle := range rehearsal.Obstacles {
		d.pass(Failure, check, fmt.Sprintf("%q does not exist and cannot be created: %s", setup.Stream, obstacle))
	}
	for _, doubt := range rehearsal.Doubts {
		d.pass(Warning, check, fmt.Sprintf("%q does not exist and can perhaps not be created: %s", setup.Stream, doubt))
	}
	switch {
	case err != nil:
		d.pass(Warning, check, fmt.Sprintf("%q does not exist, and the server did not say whether it may be created: %v", setup.Stream, err))
	case len(rehearsal.Obstacles) == 0:
		d.ok(check, "%q does not exist yet; the relay creates it, for %q; no limit of the server or of the account forbids that; whether the servers have room, only that shows: "+
			"then the relay is not ready, and its log and /readyz name the limit and the setting", setup.Stream, subject)
	}
	if setup.Memory {
		d.warn(check, "set OUTBOX_STREAM_STORAGE to file", "%q is to be kept in memory: acknowledged events are lost when its servers restart", setup.Stream)
	}
	if window := setup.Planned().Duplicates; window < setup.MinWindow {
		d.warn(CheckDuplicateWindow, "set OUTBOX_DUPLICATE_WINDOW to more", "%v is less than %v: an event may be stored twice when a frozen leader wakes up", window, setup.MinWindow)
	} else {
		d.ok(CheckDuplicateWindow, "%v, at least %v are needed", window, setup.MinWindow)
	}
}
