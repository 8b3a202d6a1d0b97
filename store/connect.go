package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/go-outbox/go-outbox/store/secretfile"
)

const (
	// addressTimeout is what one address may take to give a connection, TLS and logging in included, so that one that
	// swallows everything leaves the others their time. The DSN's connect_timeout says otherwise.
	addressTimeout = 3 * time.Second
	// connectTimeout bounds all addresses together; if there are many, each gets less.
	connectTimeout = 15 * time.Second
	// maxConnections is how many connections one relay has at most: see the package's documentation.
	maxConnections = 4
)

// connector makes every connection of an outbox. Each time it reads anew what it connects with, the files that the DSN and
// the options name included, so that whatever was rotated meanwhile is used.
type connector struct {
	dsn, dsnFile, passwordFile string
	beforeConnect              func(ctx context.Context, config *pgx.ConnConfig) error

	// As they were when the outbox was opened.
	user, database, servers string

	latest atomic.Pointer[string] // The address that gave the latest connection. It is tried first.
}

// newConnector fails for what is wrong with the DSN or the files.
func newConnector(dsn string, options *Options) (*connector, error) {
	c := &connector{dsn: dsn, dsnFile: options.DSNFile, passwordFile: options.PasswordFile, beforeConnect: options.BeforeConnect}
	if dsn != "" && c.dsnFile != "" {
		return nil, errors.New("database DSN: given, and so is option DSNFile: want one of them")
	}
	t, err := c.read()
	if err != nil {
		return nil, err
	}
	c.user, c.database, c.servers = t.User, t.Database, nameServers(serversOf(t.ConnConfig))
	return c, nil
}

// read returns what to connect with now.
func (c *connector) read() (target, error) {
	dsn, what := c.dsn, "database DSN"
	if c.dsnFile != "" {
		what = fmt.Sprintf("database DSN in the file %s", c.dsnFile)
		var err error
		if dsn, err = secretfile.Read(c.dsnFile); err != nil {
			return target{}, fmt.Errorf("%s: %w", what, err)
		}
	}
	t, err := parseDSN(dsn)
	if err != nil {
		return target{}, fmt.Errorf("%s: %w", what, err)
	}
	if c.passwordFile != "" {
		if t.Password, err = secretfile.Read(c.passwordFile); err != nil {
			return target{}, fmt.Errorf("database password in the file %s: %w", c.passwordFile, err)
		}
	}
	// The connections of one relay belong together, and one that is open stays where it is.
	if c.servers != "" && (t.Database != c.database || nameServers(serversOf(t.ConnConfig)) != c.servers) {
		return target{}, fmt.Errorf("%s: it names another server or another database than at the start: start the relay anew", what)
	}
	return t, nil
}

// server is one of those that a DSN names, with the ways of TLS to try.
type server struct {
	host string
	port uint16
	tls  []*pgconn.FallbackConfig
}

// serversOf groups what pgx makes of a DSN: one entry for each server and each way of TLS.
func serversOf(config *pgx.ConnConfig) []server {
	ways := append([]*pgconn.FallbackConfig{{Host: config.Host, Port: config.Port, TLSConfig: config.TLSConfig}}, config.Fallbacks...)
	var servers []server
	for _, way := range ways {
		i := slices.IndexFunc(servers, func(s server) bool { return s.host == way.Host && s.port == way.Port })
		if i < 0 {
			i = len(servers)
			servers = append(servers, server{host: way.Host, port: way.Port})
		}
		servers[i].tls = append(servers[i].tls, way)
	}
	return servers
}

func nameServers(servers []server) string {
	var names []string
	for _, s := range servers {
		names = append(names, address{server: s}.String())
	}
	return strings.Join(names, ",")
}

// address is one of those that a server has; ip is empty for the socket of a directory.
type address struct {
	server

	ip string
}

// String returns the server's name and the address, if that is another.
func (a address) String() string {
	if filepath.IsAbs(a.host) {
		return filepath.Join(a.host, ".s.PGSQL."+strconv.Itoa(int(a.port)))
	}
	port := strconv.Itoa(int(a.port))
	if a.ip == "" || a.ip == a.host {
		return net.JoinHostPort(a.host, port)
	}
	return a.host + " (" + net.JoinHostPort(a.ip, port) + ")"
}

// connect returns a connection with all settings that our statements rely on. Servers are tried in the DSN's order, and
// each address has its own share of the time. The caller closes it.
func (c *connector) connect(ctx context.Context, p purpose) (*pgx.Conn, error) {
	t, err := c.read()
	if err != nil {
		return nil, err
	}
	share, total := addressTimeout, connectTimeout
	if t.ConnectTimeout > 0 {
		share = t.ConnectTimeout
		total = max(total, share)
	}
	addresses, faults := resolve(ctx, t.ConnConfig, share)
	if len(addresses) > 0 {
		share = min(share, total/time.Duration(len(addresses)))
	}
	if latest := c.latest.Load(); latest != nil {
		slices.SortStableFunc(addresses, func(a, b address) int { return preferred(b, *latest) - preferred(a, *latest) })
	}
	for _, a := range addresses {
		conn, err := c.attempt(ctx, t, a, p, share)
		if err == nil {
			name := a.String()
			c.latest.Store(&name)
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("connect to Postgres: %w", context.Cause(ctx))
		}
		faults = append(faults, &addressError{a, err})
		if isFinal(err) {
			break
		}
	}
	return nil, explainConnect(faults)
}

func preferred(a address, latest string) int {
	if a.String() == latest {
		return 1
	}
	return 0
}

// resolve looks up the addresses of all servers at once, and returns them in the servers' order.
func resolve(ctx context.Context, config *pgx.ConnConfig, patience time.Duration) (addresses []address, faults []*addressError) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	servers := serversOf(config)
	found, errs := make([][]string, len(servers)), make([]error, len(servers))
	var lookups sync.WaitGroup
	for i, s := range servers {
		if filepath.IsAbs(s.host) {
			found[i] = []string{""}
			continue
		}
		lookups.Go(func() { found[i], errs[i] = config.LookupFunc(ctx, s.host) })
	}
	lookups.Wait()
	for i, s := range servers {
		if errs[i] != nil {
			if ctx.Err() != nil {
				errs[i] = fmt.Errorf("no address was found within %v: %w", patience, errs[i])
			}
			faults = append(faults, &addressError{address{server: s}, errs[i]})
		}
		for _, ip := range found[i] {
			addresses = append(addresses, address{s, ip})
		}
	}
	return addresses, faults
}

// attempt tries one address, in each way of TLS that the DSN allows.
func (c *connector) attempt(ctx context.Context, t target, a address, p purpose, share time.Duration) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, share)
	defer cancel()
	var faults []error
	for _, way := range a.tls {
		conn, err := c.open(ctx, t, a, way, p)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer within %v: %w", share, context.Cause(ctx))
		}
		if len(faults) > 0 && strings.Contains(faults[0].Error(), "server refused TLS connection") {
			faults = nil // With sslmode=prefer it was asked for just in case.
		}
		if !slices.ContainsFunc(faults, func(before error) bool { return before.Error() == err.Error() }) {
			faults = append(faults, err)
		}
		var dial *net.OpError
		if ctx.Err() != nil || isFinal(err) || errors.As(err, &dial) && dial.Op == "dial" {
			break // The other way would come to the same.
		}
	}
	return nil, errors.Join(faults...)
}

// open makes one attempt.
func (c *connector) open(ctx context.Context, t target, a address, way *pgconn.FallbackConfig, p purpose) (*pgx.Conn, error) {
	config := t.Copy()
	config.Host, config.Port, config.TLSConfig, config.Fallbacks = a.host, a.port, way.TLSConfig, nil
	config.ConnectTimeout = 0 // ctx has it.
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
	}}
	config.DialFunc = dialer.DialContext
	if c.beforeConnect != nil {
		if err := c.beforeConnect(ctx, config); err != nil {
			return nil, fmt.Errorf("option BeforeConnect: %w", err)
		}
	}
	// What follows no hook may change.
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{a.ip}, nil }
	maps.Copy(config.RuntimeParams, startOf(p))
	// Rows are read in the binary form that a prepared statement has.
	config.DefaultQueryExecMode, config.StatementCacheCapacity, config.DescriptionCacheCapacity = pgx.QueryExecModeCacheStatement, 512, 512

	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, bareReason(err)
	}
	if err := setUp(ctx, conn, p, t.attrs); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx)) // It is the other error that matters.
		return nil, err
	}
	return conn, nil
}

// setUp applies the late settings, and finds out whether the connection is one that a relay can use. It is one round trip.
func setUp(ctx context.Context, conn *pgx.Conn, p purpose, attrs string) error {
	names, values := lateOf(p)
	var pid uint32
	var standby, readOnly bool
	var set *int
	// Nothing is set on a session that a pooler lends, for others will have it next.
	err := conn.QueryRow(ctx, `
select pg_catalog.pg_backend_pid()::bigint, pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')::boolean,
       case when pg_catalog.pg_backend_pid()::bigint = $1::bigint then
           (select count(pg_catalog.set_config(s.name, coalesce(v.value, s.boot_val), false))
              from pg_catalog.pg_settings s left join rows from (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) as v (name, value) on v.name = s.name
             where v.name is not null or pg_catalog.starts_with(s.name, 'enable_'))
       end`, pgx.QueryExecModeExec, int64(conn.PgConn().PID()), names, values).Scan(&pid, &standby, &readOnly, &set)
	switch {
	case err != nil:
		return fmt.Errorf("set up the connection: %w", err)
	case set == nil:
		return errPooled
	case standby && (attrs != anyServer || p.writes):
		return fmt.Errorf("%w: name the primary, or all servers of which one is", ErrStandby)
	case readOnly && attrs == readWrite:
		return fmt.Errorf("%w, though it is no standby", ErrStandby)
	}
	return nil
}

// errPooled cannot say in which mode the pooler is: it makes up the process ID in each.
var errPooled = fmt.Errorf("%w: the process behind this connection is not the one that it was opened to, so nobody can tell to whose session a lock or a LISTEN would go; connect to the server itself, also where the pooler is in session mode", ErrPooler)

// checkServer refuses connections on which locks or sessions do not mean what the relay takes them for.
func checkServer(ctx context.Context, conn *pgx.Conn) error {
	var pid uint32
	if err := conn.QueryRow(ctx, `select pg_backend_pid()`).Scan(&pid); err != nil {
		return fmt.Errorf("check the connection: %w", err)
	}
	if pid != conn.PgConn().PID() {
		return errPooled
	}
	return nil
}

// addressError is why one address gave no connection.
type addressError struct {
	address address
	err     error
}

func (e *addressError) Error() string {
	reason := e.err.Error()
	var dial *net.OpError
	if errors.As(e.err, &dial) && dial.Op == "dial" && !errors.Is(e.err, context.DeadlineExceeded) {
		reason = dial.Err.Error() // The address is told already.
	}
	return e.address.String() + ": " + reason
}

func (e *addressError) Unwrap() error { return e.err }

// bareReason removes the user, the database and the address from pgx's error about one attempt: the first two are nobody's
// business, and the caller names the address.
func bareReason(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg
	}
	connect, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return err
	}
	err = connect.Unwrap()
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) == 1 {
		err = joined.Unwrap()[0]
	}
	if inner := errors.Unwrap(err); inner != nil { // What is outside names the address.
		err = inner
	}
	return err
}

// isFinal reports whether no other server would say anything else.
func isFinal(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pg.Code {
		case codeInvalidPassword, codeInvalidDatabase, codeInsufficientPrivilege:
			return true
		}
		_, kind := adviceOn(pg)
		return errors.Is(kind, ErrPooler)
	}
	return errors.Is(err, ErrPooler)
}

// explainConnect says why there is no connection: whether somebody refused it, what each address had to say, and what to do.
func explainConnect(faults []*addressError) error {
	errs := make([]error, len(faults))
	texts := make([]string, len(faults))
	var refusal *pgconn.PgError
	answered := false
	for i, fault := range faults {
		errs[i], texts[i] = fault, fault.Error()
		var pg *pgconn.PgError
		if errors.As(fault, &pg) {
			refusal = pg
		}
		answered = answered || pg != nil || errors.Is(fault, ErrStandby) || errors.Is(fault, ErrPooler)
	}
	headline := "cannot reach Postgres"
	if answered {
		headline = "refused by Postgres"
	}
	advice, kind := adviceOn(refusal)
	switch {
	case advice == "":
	case errors.Is(kind, ErrPooler): // Which of the parameters it names is chance.
		texts[len(texts)-1] = faults[len(faults)-1].address.String() + ": " + advice
	default:
		texts = append(texts, advice)
	}
	text := headline + ": " + strings.Join(texts, "; ")
	if kind != nil {
		errs = append(errs, kind)
	}
	return &connectError{text, errs}
}

// connectError is why there is no connection.
type connectError struct {
	text string
	errs []error
}

func (e *connectError) Error() string   { return e.text }
func (e *connectError) Unwrap() []error { return e.errs }

// adviceOn says what a refusal means and what to do about it.
func adviceOn(refusal *pgconn.PgError) (advice string, kind error) {
	if refusal == nil {
		return "", nil
	}
	names := func(names []string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return strings.Contains(strings.ToLower(refusal.Message), `"`+name+`"`) })
	}
	switch refusal.Code {
	case codeProtocolViolation:
		if strings.Contains(refusal.Message, "startup parameter") || strings.Contains(refusal.Message, "options") {
			return ErrPooler.Error() + ", and refuses the settings of the session: connect to the server itself, not to the pooler, in whatever mode that is", ErrPooler
		}
	case codeUndefinedObject:
		if names(pinnedNames()) {
			return ErrServerVersion.Error(), ErrServerVersion
		}
		return "take the setting out of the DSN", ErrParameter
	case codeInvalidParameter:
		return "take the setting out of the DSN", ErrParameter
	case codeInvalidPassword:
		return "check the user and the password, and in which file or variable they are", nil
	case codeTooManyConnections:
		return fmt.Sprintf("a relay needs up to %d connections: raise the role's or the database's CONNECTION LIMIT, or max_connections", maxConnections), nil
	}
	return "", nil
}
