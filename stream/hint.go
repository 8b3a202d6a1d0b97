package stream

import (
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
)

// Codes that refuse the creation of a stream, for which hint names a setting.
const (
	codeNoPeers         = 10005
	codeUnknownField    = 10025
	codeNoResources     = 10023
	codeNoMemory        = 10028
	codeNoDisk          = 10047
	codeInvalidConfig   = 10052
	codeNoCluster       = 10074
	codeMaxBytesNeeded  = 10113
	codeNoTier          = 10120
	codeMaxBytesTooMany = 10122
)

// hint says what to set so that the stream can be created; empty if that is not
// known.
func (s Setup) hint(e *Error) string {
	text := strings.ToLower(e.Error())
	switch e.Code {
	case codeNoTier:
		return fmt.Sprintf("the NATS account has limits for other numbers of replicas than %d (tiers), and none for this: set stream_replicas (Setup.Replicas) to one that it has limits for, or add some", max(s.Replicas, 1))
	case codeMaxBytesNeeded:
		return "the account demands that a stream says how much it keeps at most: set stream_max_bytes (Setup.MaxBytes)"
	case codeMaxBytesTooMany:
		return fmt.Sprintf("stream_max_bytes (Setup.MaxBytes), %d, exceeds what the account allows one stream: set a lower one", s.MaxBytes)
	case codeNoResources, codeNoMemory, codeNoDisk:
		if s.MaxBytes > 0 {
			return fmt.Sprintf("the server or the account has no room for stream_max_bytes (Setup.MaxBytes), %d: set a lower one, or raise the limit", s.MaxBytes)
		}
	case codeNoPeers:
		if len(s.PlacementTags) > 0 {
			return fmt.Sprintf("too few servers have the tags %q (stream_placement_tags, Setup.PlacementTags) and room for the stream: change the tags, or lower stream_replicas (Setup.Replicas)", s.PlacementTags)
		}
		return "too few servers have room for the stream: lower stream_replicas (Setup.Replicas), or add servers"
	case codeNoCluster:
		return fmt.Sprintf("the server is not in a cluster, so the stream cannot have %d replicas: set stream_replicas = 1 (Setup.Replicas)", s.Replicas)
	case codeInvalidConfig:
		if strings.Contains(text, "duplicate") && strings.Contains(text, "window") && strings.Contains(text, "server limit") {
			return fmt.Sprintf("the server does not allow a duplicate window of %v: set duplicate_window (Setup.DuplicateWindow) to what it does, or raise the server's limit (jetstream { limits { duplicate_window: … } })", s.duplicateWindow())
		}
	}
	return ""
}

// CheckInbox returns an error if the server has refused our subscription to the inbox,
// where answers come: nothing that we ask is answered on this connection. The error is
// an *Error with FaultSetup, and says what to permit, or which limit to raise.
func CheckInbox(conn *nats.Conn) error {
	if !inboxRefused(conn) {
		return nil
	}
	return noInbox(conn, conn.LastError())
}

// inboxRefused reports whether the server has refused our subscription to the inbox,
// where answers come.
func inboxRefused(conn *nats.Conn) bool {
	err := conn.LastError()
	return isAny(err, nats.ErrMaxSubscriptionsExceeded) || isAny(err, nats.ErrPermissionViolation) && strings.Contains(strings.ToLower(err.Error()), "subscription to \""+strings.ToLower(inboxPrefix(conn))+".")
}

// noInbox is the error of a connection whose inbox was refused.
func noInbox(conn *nats.Conn, err error) error {
	if isAny(conn.LastError(), nats.ErrMaxSubscriptionsExceeded) {
		return setupFault(fmt.Errorf("no answer can reach us, since the server allows our user or account no more subscriptions: raise the limit (max_subscriptions of the server, subs of the user or account), the relay needs ten: %w", err))
	}
	return setupFault(fmt.Errorf("no answer can reach us, since our user may not subscribe to %s.>: permit that, or set nats_inbox_prefix (ConnectOptions.InboxPrefix) to what it may subscribe to: %w", inboxPrefix(conn), err))
}

func inboxPrefix(conn *nats.Conn) string {
	if prefix := conn.Opts.InboxPrefix; prefix != "" {
		return prefix
	}
	return strings.TrimSuffix(nats.InboxPrefix, ".")
}
