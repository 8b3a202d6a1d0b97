package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// After a write that failed, such as on a full disk, nats-server does not write to
// that stream before it is started again, even if there is room. Who runs a
// server of its own has nobody to do that. So it is done here: on the same port,
// with the same store, once something can be written to it.
//
// The server also takes no more than three quarters of what was free on the disk
// when it started. If it stands there, it is started again once more is free.

const (
	// restartWait is the pause before a restart, and between attempts to write to
	// the store. It doubles to restartWaitMax while that does not help, and begins
	// anew after restartCalm.
	restartWait    = time.Second
	restartWaitMax = 30 * time.Second
	restartCalm    = 2 * time.Minute

	// restartRoom is how much must be written to the store's disk before.
	restartRoom = 1 << 20
)

// What the server logs when it will not write any more.
const (
	writeFailed  = "critical write error"
	limitReached = "resource limits exceeded for server"
)

// breakage is why the server does not write.
type breakage struct {
	reason  error
	limited bool // It has as much as it thinks that it may.
}

// notice tells that the server does not write any more, if its log says that.
func (l *logger) notice(format string, v []any) {
	limited := strings.Contains(format, limitReached)
	if !limited && !strings.Contains(strings.ToLower(format), writeFailed) {
		return
	}
	select {
	case l.broken <- breakage{fmt.Errorf(format, v...), limited}:
	default: // It is known already.
	}
}

// watch restarts the server whenever it does not write any more, until ctx ends.
func (s *Server) watch(ctx context.Context) {
	defer close(s.watched)
	wait, restarted := restartWait, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case broken := <-s.broken:
			if time.Since(restarted) > restartCalm {
				wait = restartWait
			}
			s.log.ErrorContext(ctx, "the embedded NATS server cannot write, and will not before a restart; make room on its disk, then it is restarted",
				slog.String("store_dir", s.options.StoreDir), slog.Any("error", broken.reason))
			if !s.restart(ctx, broken, wait) {
				return
			}
			wait, restarted = min(2*wait, restartWaitMax), time.Now()
		}
	}
}

// restart starts the server again once its disk takes something. It reports
// whether it did; otherwise ctx has ended.
func (s *Server) restart(ctx context.Context, broken breakage, wait time.Duration) bool {
	told := ""
	before, known := free(s.options.StoreDir)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
		err := s.writable()
		if now, _ := free(s.options.StoreDir); err == nil && broken.limited && known && now < before+restartRoom {
			err = fmt.Errorf("no more than %d bytes are free on the disk, of which the server leaves a quarter to others", now)
			wait = restartWait // Looking costs nothing.
			if told != "" {
				continue
			}
		}
		if err == nil {
			shutDown(s.running())
			select { // What it complained of while it ended is of no interest.
			case <-s.broken:
			default:
			}
			if err = s.boot(); err == nil { //nolint:contextcheck // It has a deadline of its own.
				s.log.WarnContext(ctx, "embedded NATS server restarted", slog.String("url", s.url))
				return true
			}
		}
		if text := err.Error(); text != told {
			told = text
			s.log.ErrorContext(ctx, "the embedded NATS server is not restarted yet", slog.Any("error", err))
		}
		wait = min(2*wait, restartWaitMax)
	}
}

// writable tries to write to the store's disk.
func (s *Server) writable() error {
	file := filepath.Join(s.options.StoreDir, "outbox-relay.room")
	err := os.WriteFile(file, make([]byte, restartRoom), 0o600)
	_ = os.Remove(file) // If it is there.
	if err != nil {
		return fmt.Errorf("write to the store: %w", err)
	}
	return nil
}
