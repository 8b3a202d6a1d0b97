package stream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/go-outbox/go-outbox/stream/wire"
)

// How a connection keeps itself alive.
const (
	reconnectWait   = 100 * time.Millisecond // between rounds through the servers
	reconnectJitter = 50 * time.Millisecond  // at most, on top of that
	pingInterval    = 5 * time.Second
	maxPingsOut     = 2
)

// ConnectOptions says where NATS is and who we are. Only URL, or URLFile, is needed.
type ConnectOptions struct {
	// URL of a server or, separated by commas, of several. The schemes are
	// nats, tls, ws and wss; nats and port 4222 may be left out. It may carry
	// user:password@ or token@, percent-encoded.
	URL string

	// URLFile names a file that has the URL, in one line, instead of URL. User and
	// password, or the token, are the same for all servers in it, and are read
	// anew at each reconnect; the servers are at each Connect.
	URLFile string

	// Name of the connection, shown in the server's logs and monitoring.
	Name string

	// CredsFile holds a user's JWT and key ("nsc generate creds"). It is read
	// anew at each reconnect, so it may be replaced while the relay runs.
	CredsFile string

	// NKeyFile holds the seed of a user's NKey. Not with CredsFile.
	NKeyFile string

	// TLSCA holds the certificates (PEM) to trust instead of the system's.
	TLSCA string

	// TLSCert and TLSKey (PEM) are this client's certificate, for servers that
	// verify it. Both or neither. All three files are read anew at each
	// reconnect: certificates expire.
	TLSCert, TLSKey string

	// TLSFirst does the TLS handshake before the server says anything, for servers
	// that want it so (handshake_first). Not with WebSockets.
	TLSFirst bool

	// InboxPrefix is what the subjects of answers start with instead of _INBOX, for
	// users who may only subscribe there.
	InboxPrefix string

	// OnDisconnect is called when the connection is lost, OnReconnect when it is
	// back, OnClosed when it has ended for good, unless the caller closed it.
	// OnError is called for other errors: a refused permission, a slow
	// subscription. Each may be nil. They run one at a time and must not block.
	OnDisconnect func(error)
	OnReconnect  func()
	OnClosed     func()
	OnError      func(error)

	// Domain is the JetStream domain of the stream, if it is not that of the servers
	// that we connect to: for instance, the stream is in the hub and we connect to a
	// leaf node. Empty for the servers' own domain.
	Domain string

	// Dialer makes the network connections, of this one connection to NATS only. Closing
	// it ends the connection at once. Default: a new one, which writes whenever it is
	// asked to.
	Dialer *wire.Dialer
}

// Connect connects to the first server that answers. It makes one attempt: the
// caller knows whether to try again. Its error is an *Error: FaultSetup for options
// that cannot work, files that cannot be read, refused credentials and untrusted
// certificates; FaultWeather for the rest. It never shows a password or token. Connect
// returns soon after ctx has ended; once made, the connection does not depend on ctx.
//
// The connection reconnects by itself, for ever. Meanwhile publishes fail and are not
// buffered: an event that is sent too late could be stored after its successor.
func Connect(ctx context.Context, opts ConnectOptions) (*nats.Conn, error) {
	if opts.Dialer == nil {
		opts.Dialer = wire.NewDialer(nil)
	}
	urls, urlsErr := opts.servers()
	opts.Dialer.Trust = opts.trust(urls)
	options, err := opts.options(urls)
	bare := urls
	if urlsErr == nil && opts.URLFile != "" {
		var logins []nats.Option
		bare, logins, urlsErr = opts.logins(urls)
		options = append(options, logins...)
	}
	if err := errors.Join(urlsErr, err); err != nil {
		return nil, setupFault(fmt.Errorf("connect to NATS: %w", err))
	}
	// nats.Connect takes no context. It fails at once if its dialer is closed.
	stop := context.AfterFunc(ctx, opts.Dialer.Close)
	nc, err := nats.Connect(bare, options...)
	if !stop() { // Ctx has ended.
		if err == nil {
			nc.Close()
		}
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, Classify(fmt.Errorf("connect to NATS at %s: %w%s", RedactURL(urls), opts.eachServer(err), opts.connectHint(err, urls)))
	}
	return nc, nil
}

// eachServer says why each server was of no use. Of several, in random order, nats.go says only why the last one was not, and
// not even that if it refused the connection.
func (o ConnectOptions) eachServer(err error) error {
	failures := o.Dialer.Failures()
	switch {
	case len(failures) > 1 && Classify(err).Fault == FaultWeather && !isAny(err, context.Canceled, context.DeadlineExceeded):
		return &serversError{fmt.Sprintf("%v (%s)", nats.ErrNoServers, strings.Join(failures, "; ")), err}
	case len(failures) > 0 && errors.Is(err, nats.ErrNoServers):
		return fmt.Errorf("%w (%s)", err, strings.Join(failures, "; "))
	}
	return withoutPort(err)
}

// withoutPort leaves out our own port, which is another one at each attempt: the same trouble has the same text.
func withoutPort(err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Source == nil {
		return err
	}
	return &serversError{strings.Replace(err.Error(), op.Source.String()+"->", "", 1), err}
}

// serversError says why servers were of no use, in words that are the same at each attempt.
type serversError struct {
	text string
	last error
}

func (e *serversError) Error() string { return e.text }
func (e *serversError) Unwrap() error { return e.last }

// connectHint says what else may be the reason why a connection failed.
func (o ConnectOptions) connectHint(err error, urls string) string {
	silent := func(failure string) bool { return strings.HasSuffix(failure, wire.Mute) }
	failures := o.Dialer.Failures()
	switch {
	case o.TLSFirst && is[tls.RecordHeaderError](err):
		return ": the server does not begin with TLS: leave out nats_tls_first (ConnectOptions.TLSFirst)"
	case !o.TLSFirst && len(failures) > 1 && slices.ContainsFunc(failures, silent) && !o.Dialer.Trust.WebSocket:
		return ": one that says nothing is frozen, or no NATS server, or wants TLS first (handshake_first): then set nats_tls_first (ConnectOptions.TLSFirst)"
	case !o.TLSFirst && o.Dialer.Mute() && !o.Dialer.Trust.WebSocket:
		return ": the server took the connection and said nothing: it is frozen, or no NATS server, or wants TLS first (handshake_first): then set nats_tls_first (ConnectOptions.TLSFirst)"
	}
	return o.loginHint(err, urls)
}

// options checks everything that can be checked without a server, and reports
// all faults at once.
func (o ConnectOptions) options(urls string) ([]nats.Option, error) {
	options := []nats.Option{
		nats.Name(o.Name),
		nats.Timeout(wire.ConnectTimeout),

		// Outages have no length limit, so neither does reconnecting. The
		// default wait of 2 s would dominate a leader change; the jitter
		// keeps many relays from coming back in step.
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectJitter, reconnectJitter),

		// The default keeps 8 MB of publishes and sends them after a
		// reconnect: long after the relay gave them up, and perhaps after
		// another leader published their successors. 0 means the default.
		nats.ReconnectBufSize(-1),

		// A frozen server or a broken network is noticed in 10 to 15 s, not in the
		// default 4 to 6 minutes.
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPingsOut),

		// A write to a frozen server blocks once the socket's buffer is full,
		// and it blocks the pings with it. The default is one minute.
		nats.FlusherTimeout(wire.WriteTimeout),

		// A write that failed in the background has thrown its messages away.
		// Without this, the next ones would go out on the same connection.
		nats.ReconnectOnFlusherError(),

		// By default two refusals in a row close the connection for good,
		// say, while credentials are being replaced.
		nats.IgnoreAuthErrorAbort(),

		// Closing is the caller's own doing; it needs not be told.
		nats.NoCallbacksAfterClientClose(),

		// Without a handler, nats.go prints to standard error.
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if o.OnError != nil {
				o.OnError(err)
			}
		}),
	}
	if o.Dialer != nil {
		options = append(options, nats.SetCustomDialer(o.Dialer), nats.SkipHostLookup())
	}
	if o.OnDisconnect != nil {
		options = append(options, nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { o.OnDisconnect(err) }))
	}
	if o.OnReconnect != nil {
		options = append(options, nats.ReconnectHandler(func(*nats.Conn) { o.OnReconnect() }))
	}
	if o.OnClosed != nil {
		options = append(options, nats.ClosedHandler(func(*nats.Conn) { o.OnClosed() }))
	}

	if o.TLSFirst {
		options = append(options, nats.TLSHandshakeFirst())
	}
	if o.InboxPrefix != "" {
		options = append(options, nats.CustomInboxPrefix(o.InboxPrefix))
	}

	credentials, credentialsErr := o.credentials()
	certificates, certificatesErr := o.certificates()
	if err := errors.Join(o.checkFields(urls), credentialsErr, certificatesErr); err != nil {
		return nil, err
	}
	return slices.Concat(options, credentials, certificates), nil
}

// Validate says what is wrong with the options, all at once, as far as that can be told
// without reading the files that they name. The error shows no part of a URL but its
// scheme.
func (o ConnectOptions) Validate() error {
	var urlErr error
	switch {
	case o.URLFile == "":
		urlErr = checkURLs(o.URL)
	case o.URL != "":
		urlErr = errTwoURLs
	}
	return errors.Join(urlErr, o.checkFields(o.URL))
}

// Check is Validate that reads URLFile, too. Connect checks the other files.
func (o ConnectOptions) Check() error {
	urls, err := o.servers()
	return errors.Join(err, o.checkFields(urls))
}

var errTwoURLs = errors.New("URL: given, and so is URLFile: want one of them")

// checkFields says what is wrong with all but the URLs, and with the rest if these are
// the URLs.
func (o ConnectOptions) checkFields(urls string) error {
	var faults []error
	refuse := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if o.CredsFile != "" && o.NKeyFile != "" {
		refuse("a credentials file and an NKey file were given: want one of them")
	}
	if (o.TLSCert == "") != (o.TLSKey == "") {
		refuse("TLS certificate and key: one was given without the other")
	}
	if o.TLSFirst && o.trust(urls).WebSocket {
		refuse("TLSFirst: WebSockets have TLS by their scheme: with ws and wss leave it out")
	}
	if strings.ContainsAny(o.Domain, " .*>") || strings.ContainsFunc(o.Domain, unprintable) {
		refuse("Domain: %q is not one token of a subject: want the name that the servers' configuration gives it (jetstream { domain: … })", o.Domain)
	}
	if p := o.InboxPrefix; p != "" && (strings.ContainsAny(p, " *>") || strings.ContainsFunc(p, unprintable) ||
		strings.HasPrefix(p, ".") || strings.HasSuffix(p, ".") || strings.Contains(p, "..")) {
		refuse("InboxPrefix: %q is no subject: want one without wildcards and without a dot at its end, such as _INBOX_relay", p)
	}
	return errors.Join(faults...)
}

// unprintable reports whether a name must not have r: a control character, or what
// stands for bytes that are not UTF-8.
func unprintable(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError }

func (o ConnectOptions) credentials() ([]nats.Option, error) {
	switch {
	case o.CredsFile != "" && o.NKeyFile != "":
		return nil, nil // checkFields says so.

	case o.CredsFile != "":
		// nats.go reads it only while connecting, and its error is then told
		// apart from the weather with difficulty.
		contents, err := os.ReadFile(o.CredsFile)
		if err != nil {
			return nil, fmt.Errorf("credentials file: %w", err)
		}
		if token, err := nkeys.ParseDecoratedJWT(contents); err != nil || strings.Count(token, ".") != 2 {
			return nil, fmt.Errorf("credentials file %s: has no user JWT", o.CredsFile)
		}
		if _, err := nkeys.ParseDecoratedUserNKey(contents); err != nil {
			return nil, fmt.Errorf("credentials file %s: has no user key", o.CredsFile)
		}
		return []nats.Option{nats.UserCredentials(o.CredsFile)}, nil

	case o.NKeyFile != "":
		if _, err := os.Stat(o.NKeyFile); err != nil {
			return nil, fmt.Errorf("NKey file: %w", err)
		}
		option, err := nats.NkeyOptionFromSeed(o.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("NKey file %s: has no seed of a user key", o.NKeyFile)
		}
		return []nats.Option{option}, nil
	}
	return nil, nil
}

func (o ConnectOptions) certificates() ([]nats.Option, error) {
	var options []nats.Option
	if o.TLSCA != "" {
		pem, err := os.ReadFile(o.TLSCA)
		if err != nil {
			return nil, fmt.Errorf("TLS CA file: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("TLS CA file %s: has no certificate in PEM form", o.TLSCA)
		}
		options = append(options, nats.RootCAs(o.TLSCA))
	}
	if o.TLSCert == "" || o.TLSKey == "" {
		return options, nil // If one was given, checkFields says so.
	}
	pair, err := tls.LoadX509KeyPair(o.TLSCert, o.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate %s with key %s: %w", o.TLSCert, o.TLSKey, err)
	}
	if end := pair.Leaf.NotAfter; time.Now().After(end) {
		// With TLS 1.3 a server that refuses it may seem to hang up without
		// a reason.
		return nil, fmt.Errorf("TLS certificate %s: expired at %v", o.TLSCert, end)
	}
	return append(options, nats.ClientCert(o.TLSCert, o.TLSKey)), nil
}

// checkURLs finds the faults for which nats.go's own errors would show the URL,
// password and all. Its error shows no part of a URL but its scheme: in one that is
// malformed, any part may be a part of the password.
func checkURLs(list string) error {
	if strings.TrimSpace(list) == "" {
		return errors.New("URL: is empty, want one such as nats://127.0.0.1:4222")
	}
	urls := strings.Split(list, ",")
	var webSockets int
	for i, raw := range urls {
		which := "URL"
		if len(urls) > 1 {
			which = fmt.Sprintf("URL %d of %d", i+1, len(urls))
		}
		raw = strings.TrimSpace(raw)
		if !strings.Contains(raw, "://") {
			raw = "nats://" + raw
		}
		u, err := url.Parse(raw)
		if err != nil || u.User != nil && u.User.String() == "" {
			return fmt.Errorf("%s: malformed: want one such as nats://127.0.0.1:4222; in a user name, password or token, special characters must be percent-encoded", which)
		}
		switch u.Scheme {
		case "nats", "tls":
		case "ws", "wss":
			webSockets++
		default:
			return fmt.Errorf("%s: unknown scheme %q: want nats, tls, ws or wss", which, u.Scheme)
		}
		if u.Hostname() == "" {
			return fmt.Errorf("%s: has no host", which)
		}
		if port := u.Port(); port != "" {
			if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
				return fmt.Errorf("%s: its port is not from 1 to 65535", which)
			}
		}
	}
	if webSockets != 0 && webSockets != len(urls) {
		return errors.New("URL: WebSockets (ws, wss) and other URLs cannot be mixed")
	}
	return nil
}

// RedactURL makes a URL, or several separated by commas, fit to be shown: what
// stands before an at sign, a user, password or token, gives way to "xxxxx".
// In text that is no valid URL it rather hides too much than too little.
func RedactURL(text string) string {
	parts := strings.Split(text, "@")
	for i, part := range parts[:len(parts)-1] {
		keep := 0
		if scheme := strings.LastIndex(part, "://"); scheme >= 0 {
			keep = scheme + len("://")
		}
		parts[i] = part[:keep] + "xxxxx"
	}
	return strings.Join(parts, "@")
}

// API returns what the subjects of JetStream's API start with, with a dot at its end.
func (o ConnectOptions) API() string {
	if o.Domain == "" {
		return jetstream.DefaultAPIPrefix
	}
	return "$JS." + o.Domain + ".API."
}

// JetStream returns JetStream as a connection with these options reaches it. Its error is an *Error.
func (o ConnectOptions) JetStream(conn *nats.Conn) (jetstream.JetStream, error) {
	js, err := jetstream.New(conn)
	if o.Domain != "" {
		js, err = jetstream.NewWithDomain(conn, o.Domain)
	}
	if err != nil {
		return nil, setupFault(fmt.Errorf("use JetStream: %w", err))
	}
	return js, nil
}
