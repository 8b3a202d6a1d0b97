package stream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/excerpt"
)

// A Fault says whose fault a failure is, and so who pays for it.
type Fault int

const (
	// FaultWeather is nobody's fault: it passes. The whole relay backs off, and no
	// event's attempts are spent. Whatever is not understood is weather, so that no
	// event is ever given up for a reason that we cannot name.
	FaultWeather Fault = iota

	// FaultSetup is the fault of the stream, the server or the configuration: it
	// lasts until a person changes something. The whole relay backs off and says
	// why, and no event's attempts are spent.
	FaultSetup

	// FaultRow is the fault of this one event: it is not stored as it is. Its
	// attempts are spent, and only its own aggregate waits.
	FaultRow
)

// String returns "weather", "setup" or "row".
func (f Fault) String() string {
	switch f {
	case FaultSetup:
		return "setup"
	case FaultRow:
		return "row"
	default:
		return "weather"
	}
}

// Codes of JetStream's answers that callers branch on. The full list is
// errors.json of nats-server.
const (
	// CodeWrongLastSequence refuses a message for its expected sequence: with
	// a fence, a leader of a later term is at work.
	CodeWrongLastSequence = 10071

	// CodeDuplicateInProcess: a message with the same ID is being stored just
	// now, and may still fail.
	CodeDuplicateInProcess = 10158

	// CodeMessageTooLarge: the message exceeds the stream's max_msg_size.
	CodeMessageTooLarge = 10054

	// CodeSequenceInProcess: another message with an expected sequence on the
	// same subject is being stored just now.
	CodeSequenceInProcess = 10164
)

// Further codes.
const (
	codeHeadersTooLarge = 10097
	codeStoreFailed     = 10077
)

// An Error is a failure with its fault.
type Error struct {
	Fault Fault

	// Code is JetStream's error code (err_code), 0 if it gave none.
	Code int

	// Status is JetStream's status, such as 400 or 503; 0 if it gave none.
	Status int

	// Err is the cause and never nil.
	Err error

	// Refused says that the message is certainly not stored: see Ambiguous.
	Refused bool

	// Permanent says that the event is refused for what it is, and that this cannot
	// change within seconds: it is larger than the server or the stream takes, or
	// has headers or an ID that no message can have. Trying again is of no use
	// before a person changes the event or a limit. Other refusals of an event may
	// pass.
	Permanent bool

	told bool // Err has the figures of the limit, and what to do
}

// Error returns the cause's text.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Ambiguous says that the event is in doubt: it may have been stored, or may yet be,
// although no acknowledgement came. Before the event is published again, the stream
// must be read back, or its duplicate window must be relied upon. Ambiguous speaks of
// this attempt only: if an earlier attempt is in doubt, it stays so although a later
// one is refused.
func (e *Error) Ambiguous() bool { return !e.Refused }

// Classify finds out whose fault a failure is: the failure of a publish, of a
// JetStream request or of a connection. It returns nil for nil. If there is an *Error
// in the chain, its fault is the result.
func Classify(err error) *Error {
	if err == nil {
		return nil
	}
	if known, ok := errors.AsType[*Error](err); ok {
		again := *known
		again.Err = err
		return &again
	}
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		if api == nil {
			return Malformed("an error without an error object") // A nil one has no text either.
		}
		e := &Error{Code: int(api.ErrorCode), Status: api.Code, Err: err}
		e.Fault, e.Refused = classifyCode(api)
		e.Permanent = e.Fault == FaultRow && permanentCode(api)
		return e
	}
	e := &Error{Err: err}
	e.Fault, e.Refused = classifyClient(err)
	e.Permanent = e.Fault == FaultRow // Its size, subject or headers.
	return e
}

// permanentCode says whether the server refused a message for its size. The
// other codes that are the row's fault depend on the stream's configuration.
func permanentCode(api *jetstream.APIError) bool {
	switch int(api.ErrorCode) {
	case CodeMessageTooLarge, codeHeadersTooLarge:
		return true
	}
	return strings.Contains(api.Description, textTooLarge)
}

// maxRefusal is how many bytes the reason for refusing an event may have: it may name
// many headers of the event.
const maxRefusal = 1000

// rowFault and setupFault wrap what this package itself finds wrong, before
// anything is sent.
func rowFault(err error) error {
	if text := err.Error(); len(text) > maxRefusal {
		err = errors.New(excerpt.To(text, maxRefusal))
	}
	return &Error{Fault: FaultRow, Err: err, Refused: true, Permanent: true}
}
func setupFault(err error) error { return &Error{Fault: FaultSetup, Err: err, Refused: true} }

// classifyCode judges an answer of the server. The codes' names are in
// errors.json of nats-server 2.15.2; the answers to a publish are made in
// stream.go (queueInbound, processJetStreamMsgWithBatch,
// processJetStreamFastBatchMsg), jetstream_batching.go
// (checkMsgHeadersPreClusteredProposal) and jetstream_cluster.go
// (processClusteredInboundMsg), those to a request in jetstream_api.go.
//
// refused is set for the codes that are known to be given before anything is
// stored, on one server and in a cluster.
func classifyCode(api *jetstream.APIError) (fault Fault, refused bool) {
	switch int(api.ErrorCode) {
	case codeStoreFailed: // its reason is in the text only
		switch {
		case strings.Contains(api.Description, textTooLarge):
			// More than a record of the file store can hold.
			return FaultRow, true
		case strings.Contains(api.Description, textPerSubject):
			// A limit on the messages of its subject, and the stream discards new
			// ones: it concerns no event of another subject.
			return FaultRow, true
		case strings.Contains(api.Description, textNoSpace):
			// The server does not write again before a restart.
			return FaultSetup, false
		}
		// A limit on messages or bytes, and the stream discards new ones.
		// Consumers, age or a person make room; see explanation.
		return FaultWeather, true

	case
		CodeMessageTooLarge, // with its headers it exceeds the stream's max_msg_size
		codeHeadersTooLarge: // the headers exceed 64 KiB
		return FaultRow, true

	case
		// Headers that command the server to do what this stream does not.
		// Rows with such headers are refused earlier, so this takes somebody
		// between us and the stream; still it is this message's, for ever.
		10111, // Nats-Rollup
		10165, // Nats-TTL: not a duration
		10166, // Nats-TTL: off
		10168, // Nats-Incr: off
		10170, // Nats-Incr: with a payload
		10171, // Nats-Incr: not a number
		10188, // Nats-Schedule: off
		10189, // Nats-Schedule: pattern
		10190, // Nats-Schedule: target
		10191, // Nats-Schedule: TTL
		10192, // Nats-Schedule: rollup
		10203, // Nats-Schedule: source
		10212, // Nats-Scheduler
		10223, // Nats-Schedule: time zone
		10227: // Nats-Stream-Source
		return FaultRow, true

	case
		10060: // another stream than the expected one refuses the message; what ours does is another matter
		return FaultSetup, false

	case
		10109, // the stream is sealed
		10169, // the stream counts: it takes nothing but increments
		10172, // the stream counts, and cannot read its own counter
		10193, // a fence without a sequence: our own fault
		10205, // the stream takes no ordered batches
		10206, // the server does not know this kind of batch
		10207, // the server does not take this batch ID
		10120, // the account has no JetStream limits
		10039, // JetStream is off for the account
		10076: // JetStream is off on the server
		return FaultSetup, true

	case // answers to looking a stream up or creating it
		10003, // bad request
		10005, // no suitable peers: say, more replicas than servers
		10025, // invalid JSON: say, a field that an old server does not know
		10026, // likewise a consumer: too many of them
		codeStreamsMost,
		codeInvalidConfig,
		10058,               // the name is in use, with another configuration
		10059,               // stream not found
		10065,               // another stream listens on the subjects
		10074,               // replicas without a cluster
		codeMaxBytesNeeded,  // by the account
		codeMaxBytesTooMany, // likewise
		10185:               // the request needs a newer server
		return FaultSetup, true

	case
		codeNoResources,
		codeAccountExceeded,
		codeNoMemory,
		codeNoDisk,
		10167, // 429: the stream's ingest queue is full
		10210, // 429: too many atomic batches in flight
		10211, // 429: too many ordered batches in flight
		10208, // the ordered batch has ended; this message was not taken
		10071, // wrong last sequence: a later leader's fence, see there
		10164, // likewise in a cluster, while another is in process
		10163: // the expected sequence cannot be told while the leader catches up
		return FaultWeather, true

	case
		// Not this message, but another with the same ID is being stored, and
		// may fail: neither stored nor lost.
		10158,
		// In a cluster, found out after the followers got the message.
		10063:
		return FaultWeather, false
	}
	// Not the leader, offline, in a snapshot, …, or unheard of.
	return FaultWeather, false
}

// classifyClient judges an error without a code: nats.go's own, or the
// network's.
func classifyClient(err error) (fault Fault, refused bool) {
	switch {
	case isAny(err,
		nats.ErrMaxPayload,          // exceeds the server's max_payload, checked before sending
		nats.ErrBadSubject,          // likewise; cannot come of a Template
		jetstream.ErrInvalidSubject, // likewise
		nats.ErrBadHeaderMsg,        // a header name that cannot be sent; cannot come of an Encoder
	):
		return FaultRow, true

	case isAny(err,
		nats.ErrHeadersNotSupported,     // a server that cannot tell duplicates
		jetstream.ErrInvalidStreamName,  // refused before it was asked for
		jetstream.ErrStreamNameRequired, // likewise
	):
		return FaultSetup, true

	case isAny(err,
		nats.ErrAuthorization,       // user, password, token or key refused
		nats.ErrAuthExpired,         // the user's JWT
		nats.ErrAuthRevoked,         // likewise
		nats.ErrAccountAuthExpired,  // the account's JWT
		nats.ErrPermissionViolation, // may not publish to this subject
		nats.ErrNkeysNotSupported,   // the server wants no key
		nats.ErrSecureConnRequired,  // the server demands TLS
		nats.ErrSecureConnWanted,    // the server has no TLS
		fs.ErrNotExist,              // credentials, key or certificate gone since
		fs.ErrPermission,            // likewise unreadable
	), isTLS(err):
		return FaultSetup, false

	case isAny(err,
		// 503: nothing listens on the subject. The stream has no leader just
		// now, JetStream is starting, or there is no such stream: the answer
		// is the same, and waiting is right for most of them.
		nats.ErrNoResponders, jetstream.ErrNoStreamResponse,
		// Refused by the client, without a connection to send on.
		nats.ErrReconnectBufExceeded, nats.ErrConnectionDraining, nats.ErrInvalidConnection,
		// Refused by the client: too many acks are outstanding.
		jetstream.ErrTooManyStalledMsgs,
	):
		return FaultWeather, true
	}

	// What remains may have happened after the message left: a timeout
	// (nats.ErrTimeout, jetstream.ErrAsyncPublishTimeout, a context's), a
	// connection that broke (nats.ErrDisconnected, nats.ErrConnectionClosed,
	// nats.ErrStaleConnection, a net.Error), an answer that nobody
	// understands (jetstream.ErrInvalidJSAck), a wait that was cancelled.
	return FaultWeather, false
}

// isTLS says whether a handshake failed over who is trusted rather than over
// the network.
func isTLS(err error) bool {
	if remote, ok := errors.AsType[*net.OpError](err); ok && remote.Op == "remote error" {
		// What crypto/tls makes of the other side's alert, such as
		// "certificate required".
		return true
	}
	return is[*tls.CertificateVerificationError](err) || is[tls.RecordHeaderError](err) ||
		is[x509.UnknownAuthorityError](err) || is[x509.CertificateInvalidError](err) || is[x509.HostnameError](err)
}

// A LostError says that the stream is not what it was: events that it acknowledged may
// be lost. What the stream holds must be read back.
type LostError struct {
	// Reason says what is different.
	Reason string
}

// Error returns the reason.
func (e *LostError) Error() string { return e.Reason }

// Malformed is the fault of an answer that does not follow the protocol: the outcome of
// what was sent is in doubt. What says what is wrong. It is a jetstream.ErrInvalidJSAck.
func Malformed(what string) *Error { return Classify(&malformedError{what}) }

// malformedError is a jetstream.ErrInvalidJSAck that says what is wrong.
type malformedError struct{ what string }

func (e *malformedError) Error() string { return "malformed answer of the stream: " + e.what }
func (e *malformedError) Unwrap() error { return jetstream.ErrInvalidJSAck }

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func isAny(err error, targets ...error) bool {
	for _, target := range targets {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
