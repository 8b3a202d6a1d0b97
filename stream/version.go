package stream

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Releases of nats-server, as major and minor number.
var (
	// oldestServer is the oldest release that the relay works with. Older servers
	// cannot make the consumer that reading back needs: the first leader would
	// publish, and every later one would wait for ever.
	oldestServer = release{2, 9} //nolint:gochecknoglobals // Immutable.

	// batchServer is the first release that takes ordered batches.
	batchServer = release{2, 14} //nolint:gochecknoglobals // Immutable.
)

// release is the part of a version that tells what a server can do.
type release struct{ major, minor int }

func (r release) String() string { return fmt.Sprintf("%d.%d", r.major, r.minor) }

func (r release) before(other release) bool {
	return r.major < other.major || r.major == other.major && r.minor < other.minor
}

// releaseOf reads a version as servers tell it, such as "2.10.0-RC.1". It is not ok
// if the version has another form.
func releaseOf(version string) (r release, ok bool) {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	r.major, ok = whole(major)
	if !ok {
		return release{}, false
	}
	r.minor, ok = whole(minor)
	return r, ok
}

func whole(text string) (n int, ok bool) {
	n, err := strconv.Atoi(text)
	return n, err == nil && n >= 0
}

// CheckServer returns an error that names the server's version if it is too old, and one
// if the server takes no headers. A version of unknown form counts as new. The error is an *Error with FaultSetup.
func CheckServer(conn *nats.Conn) error {
	version := conn.ConnectedServerVersion()
	if r, ok := releaseOf(version); ok && r.before(oldestServer) {
		return setupFault(fmt.Errorf("nats-server at %s is version %.40s, and %v is the oldest that works: upgrade it, all servers of a cluster",
			RedactURL(conn.ConnectedUrl()), version, oldestServer))
	}
	if !conn.HeadersSupported() {
		return setupFault(fmt.Errorf("nats-server at %s takes no headers, by which the relay knows what is stored: allow them there (no_header_support: false)",
			RedactURL(conn.ConnectedUrl())))
	}
	return nil
}

// BatchAdvice says what is missing for ordered batches, and how to get it. If the
// stream takes them, it says what to do before a downgrade of the server.
func (o ConnectOptions) BatchAdvice(conn *nats.Conn, stream string, has bool) string {
	version := conn.ConnectedServerVersion()
	r, ok := releaseOf(version)
	tooOld := ok && r.before(batchServer)
	switch {
	case has && tooOld:
		return fmt.Sprintf("the stream has allow_batched, which nats-server %.40s does not know: upgrade it to %v or newer, or take it away with a server that knows it: %s",
			version, batchServer, updateCommand(o.API(), stream, false))
	case has:
		return fmt.Sprintf("available: backlogs are published with them; servers before %v do not know the stream's allow_batched, so before a downgrade run %s",
			batchServer, updateCommand(o.API(), stream, false))
	case tooOld:
		return fmt.Sprintf("not available, which only costs speed: they need nats-server %v, this is %.40s", batchServer, version)
	}
	return "not available, which only costs speed: the stream needs allow_batched: run " + updateCommand(o.API(), stream, true)
}

// updateCommand is the command that sets allow_batched. It talks to the API
// itself, since "nats stream edit" has no flag for that.
func updateCommand(api, stream string, allow bool) string {
	return fmt.Sprintf("`nats request '%[1]sSTREAM.UPDATE.%[2]s' \"$(nats request --raw '%[1]sSTREAM.INFO.%[2]s' '' | jq -c '.config + {allow_batched: %[3]t}')\"`",
		api, stream, allow)
}

// codeOffline is the API's code for a stream that the server keeps offline.
const codeOffline jetstream.ErrorCode = 10194

// offline explains that a server keeps the stream offline. If it does not know a
// setting of the stream, as after a downgrade, that is the set-up's fault.
func (s Setup) offline(js jetstream.JetStream, err *jetstream.APIError) *Error {
	e := Classify(err)
	if !strings.Contains(err.Description, "unsupported") {
		e.Err = fmt.Errorf("stream %q: %w", s.Stream, err)
		return e
	}
	advice := "go back to the version that made it"
	if strings.Contains(err.Description, "allow_batched") {
		api := cmp.Or(js.Options().APIPrefix, jetstream.DefaultAPIPrefix)
		advice = fmt.Sprintf("go back to %v or newer; to downgrade after that, run %s there first", batchServer, updateCommand(api, s.Stream, false))
	}
	e.Fault, e.Err = FaultSetup, fmt.Errorf("stream %q is kept offline by nats-server %.40s, which does not know one of its settings: %s (%w)",
		s.Stream, js.Conn().ConnectedServerVersion(), advice, err)
	return e
}
