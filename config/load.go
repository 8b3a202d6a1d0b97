package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-multierror"
)

// Where a configuration comes from.
const (
	// PathEnv is the variable that names the file. A file named there must
	// exist.
	PathEnv = "CONFIG_PATH"

	// DefaultPath is the file read if PathEnv is not set. It need not exist.
	DefaultPath = "config/relay.toml"

	envPrefix = "OUTBOX_"
	envPlace  = "environment"
)

// Sources is where [Load] finds settings. Its zero value is the process's own
// environment, not searched for unknown variables, and file system.
type Sources struct {
	// LookupEnv returns a variable of the environment. Default os.LookupEnv.
	LookupEnv func(name string) (value string, ok bool)

	// Environ lists the environment as "name=value", as os.Environ does. If it
	// is set, OUTBOX_ variables that do not exist are faults. Default nil.
	Environ func() []string

	// ReadFile reads the configuration, and the files it names to see that
	// they can be read. Default [ReadFile].
	ReadFile func(name string) ([]byte, error)

	// Unneeded tells settings whose files need not be there, by key. Default
	// none: all are read.
	Unneeded func(key string) bool

	// Check finds what this package cannot: it is asked once all else was, also
	// if there are faults already, with the defaults in place of what is
	// faulty. Its findings are placed where the settings were made. Default
	// nil.
	Check func(c Config) []Finding
}

// Finding is a fault of one setting that [Sources.Check] has found.
type Finding struct {
	// Key is the setting's key in the file.
	Key string

	// Problem is what is wrong with it, without secrets.
	Problem string
}

// MaxFileSize is the most that [ReadFile] reads.
const MaxFileSize = 1 << 20

// ReadFile reads a regular file of at most [MaxFileSize] bytes. A pipe would be
// waited for, and some devices never end.
func ReadFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, MaxFileSize+1))
	if err == nil && len(data) > MaxFileSize {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("more than %d bytes", MaxFileSize)}
	}
	return data, err
}

// Load reads the configuration from its sources and checks it. If the error is
// not nil, it is a *multierror.Error of every fault found, each an [*Error],
// and the Config is not to be used.
func Load(src Sources) (Config, error) {
	if src.LookupEnv == nil {
		src.LookupEnv = os.LookupEnv
	}
	if src.ReadFile == nil {
		src.ReadFile = ReadFile
	}
	l := &loader{
		Sources: src,
		fields:  Fields(),
		config:  Default(),
		origins: make(map[string]origin),
		faulty:  make(map[string]bool),
		faults:  &multierror.Error{ErrorFormat: listFaults},
	}
	l.loadFile()
	l.loadEnvironment()
	for _, s := range secrets() {
		l.choose(s)
	}
	l.checkFiles()
	for _, s := range secrets() {
		l.readSecret(s)
	}
	l.checkRequired()
	l.checkRelations()
	l.checkFurther()
	if err := l.faults.ErrorOrNil(); err != nil {
		return Config{}, err
	}
	return l.config, nil
}

// loader is one run of Load.
type loader struct {
	Sources
	fields []Field
	config Config
	file   string            // the file that was read, if any
	broken bool              // there is a file, but it could not be read
	faults *multierror.Error // in the order they were found

	// origins and faulty are by the field's key.
	origins map[string]origin // where a value was set, if anywhere
	faulty  map[string]bool   // set, but wrongly
}

// origin is where a setting was made, and under which name.
type origin struct{ place, setting string }

func (l *loader) fault(e *Error) { l.faults = multierror.Append(l.faults, e) }

// loadFile applies the file, if there is one.
func (l *loader) loadFile() {
	path, named := l.lookupEnv(PathEnv)
	if !named {
		path = DefaultPath
	}
	data, err := l.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
		return
	case err != nil && named:
		l.broken = true
		l.fault(&Error{Place: envPlace, Setting: PathEnv, Problem: "got " + quote(path), Want: "the path of a readable file", Hint: reason(err)})
		return
	case err != nil:
		l.broken = true
		l.fault(&Error{Place: path, Problem: "cannot be read: " + reason(err)})
		return
	}

	l.file = path
	entries, fault := parseFile(path, data)
	if fault != nil {
		l.broken = true
		l.fault(fault)
		return
	}
	l.applyFile(entries)
}

func (l *loader) applyFile(entries []entry) {
	skip := false // the table the entries are in is not one of ours
	for _, e := range entries {
		switch {
		case e.table:
			skip = e.array || !isTable(e.key)
			if skip {
				l.fault(l.unknownTable(e))
			}
		case skip:
			// One fault for the table is enough to find what is in it.
		default:
			l.applyEntry(e)
		}
	}
}

func (l *loader) applyEntry(e entry) {
	at := origin{e.place, e.key}
	if isTable(e.key) {
		l.fault(&Error{Place: e.place, Setting: e.key, Problem: "not a table", Want: "[" + e.key + "]"})
		return
	}
	i := slices.IndexFunc(l.fields, func(f Field) bool { return e.key == f.Key || e.key == f.alias })
	if i < 0 {
		l.fault(&Error{Place: e.place, Setting: e.key, Problem: "unknown key", Hint: suggestKey(e.key, l.fields)})
		return
	}
	f := l.fields[i]
	text, ok := textOf(e.value, f.Type)
	if !ok {
		l.faulty[f.Key] = true
		l.fault(&Error{Place: e.place, Setting: e.key, Problem: f.got(e.value), Want: f.Want})
		return
	}
	first, before := l.origins[f.Key], f.Value(l.config)
	l.apply(f, at, text, e.value)
	if now := f.Value(l.config); first.place != "" && now != before {
		l.faulty[f.Key] = true
		l.fault(&Error{
			Place: e.place, Setting: e.key, Problem: "got " + quote(now),
			Hint: fmt.Sprintf("%s at %s says %q; set it once", first.setting, first.place, before),
		})
	}
}

// apply sets a field to what text says, or records the fault in it; value is
// text as it was written.
func (l *loader) apply(f Field, at origin, text string, value any) {
	hint, ok := f.form.parse(&l.config, text)
	if !ok {
		l.faulty[f.Key] = true
		l.fault(&Error{Place: at.place, Setting: at.setting, Problem: f.got(value), Want: f.Want, Hint: hint})
		return
	}
	l.origins[f.Key] = at
}

func (l *loader) unknownTable(e entry) *Error {
	header := "[" + e.key + "]"
	fault := &Error{Place: e.place, Setting: header, Problem: "unknown table", Want: "[" + strings.Join(tables(), "] or [") + "]"}
	if e.array {
		fault.Setting, fault.Problem = "["+header+"]", "got an array of tables"
	}
	if isTable(e.key) {
		return fault
	}
	if slices.ContainsFunc(l.fields, func(f Field) bool { return f.Key == e.key }) {
		fault.Hint = e.key + " is a key, not a table"
	} else if near, ok := nearest(e.key, tables()); ok {
		fault.Hint = didYouMean("[" + near + "]")
	}
	return fault
}

// loadEnvironment applies the environment over the file.
func (l *loader) loadEnvironment() {
	known := make(map[string]bool, len(l.fields))
	for _, f := range l.fields {
		known[f.Env] = true
		if value, ok := l.lookupEnv(f.Env); ok {
			l.apply(f, origin{envPlace, f.Env}, value, value)
		}
	}
	if l.Environ == nil {
		return
	}
	unknown := make(map[string]bool)
	for _, variable := range l.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, envPrefix) && value != "" && !known[name] && !isServiceVariable(name, value) {
			unknown[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(unknown)) {
		l.fault(&Error{Place: envPlace, Setting: name, Problem: "unknown variable", Hint: suggestEnv(name, l.fields)})
	}
}

// lookupEnv returns a variable that is set to something.
func (l *loader) lookupEnv(name string) (string, bool) {
	value, ok := l.LookupEnv(name)
	return value, ok && value != ""
}

var (
	serviceName = regexp.MustCompile(`_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$`)
	servicePort = regexp.MustCompile(`^(tcp|udp|sctp)://`)
)

// isServiceVariable recognises what Kubernetes sets in every pod of a namespace
// with a service called, of all things, outbox: OUTBOX_SERVICE_HOST=10.0.0.1,
// OUTBOX_PORT=tcp://10.0.0.1:8080, OUTBOX_PORT_8080_TCP_ADDR=10.0.0.1 and more.
func isServiceVariable(name, value string) bool {
	return serviceName.MatchString(name) ||
		strings.HasSuffix(name, "_PORT") && servicePort.MatchString(value)
}

// checkRequired reports what has no default and was not set. Of a file that
// could not be read nobody knows what it sets.
func (l *loader) checkRequired() {
	if l.broken {
		return
	}
	for _, f := range l.fields {
		if _, set := l.origins[f.Key]; set || !f.Required || l.faulty[f.Key] {
			continue
		}
		if f.Key == dsnKey && (l.config.DatabaseDSNFile != "" || l.faulty[dsnFileKey]) {
			continue
		}
		fault := &Error{Place: envPlace, Setting: f.Env, Problem: "not set", Want: f.Want, Hint: "or name a file that has it in " + f.Env + "_FILE"}
		if l.file != "" {
			fault.Place, fault.Setting = l.file, f.Key
			fault.Hint = "or set " + f.Env + ", or name a file that has it in " + f.Env + "_FILE"
		}
		l.fault(fault)
	}
}

// secret is a setting that may be in a file of its own, which another setting names.
type secret struct {
	key, fileKey string
	value        func(*Config) *Secret
	file         func(*Config) *string
}

func secrets() []secret {
	return []secret{
		{dsnKey, dsnFileKey, func(c *Config) *Secret { return &c.DatabaseDSN }, func(c *Config) *string { return &c.DatabaseDSNFile }},
		{natsURLKey, natsURLFileKey, func(c *Config) *Secret { return &c.NATS.URL }, func(c *Config) *string { return &c.NATS.URLFile }},
	}
}

// choose makes a secret and its file alternatives: the environment's goes before
// the file's, and in one place there is but one.
func (l *loader) choose(s secret) {
	value, valueSet := l.origins[s.key]
	file, fileSet := l.origins[s.fileKey]
	if !valueSet || !fileSet || *s.file(&l.config) == "" {
		return
	}
	switch {
	case value.place == envPlace && file.place != envPlace:
		*s.file(&l.config) = ""
		delete(l.origins, s.fileKey)
	case file.place == envPlace && value.place != envPlace:
		*s.value(&l.config) = ""
		delete(l.origins, s.key)
	default:
		l.faulty[s.fileKey] = true
		l.fault(&Error{Place: file.place, Setting: file.setting, Problem: "set, and so is " + l.whence(s.key), Want: "one of them"})
	}
}

// readSecret takes a secret from its file.
func (l *loader) readSecret(s secret) {
	name := *s.file(&l.config)
	if name == "" || l.faulty[s.fileKey] {
		return
	}
	at := l.origins[s.fileKey]
	data, err := l.ReadFile(name)
	if err != nil {
		return // checkFiles has said so, or it is not needed.
	}
	i := slices.IndexFunc(l.fields, func(f Field) bool { return f.Key == s.key })
	hint, ok := l.fields[i].form.parse(&l.config, strings.TrimRight(string(data), "\r\n"))
	if !ok {
		l.faulty[s.fileKey] = true
		l.fault(&Error{Place: at.place, Setting: at.setting, Problem: "in the file " + quote(name) + " is something else", Want: l.fields[i].Want, Hint: hint})
	}
}

// checkFurther reports what others find.
func (l *loader) checkFurther() {
	if l.Check == nil {
		return
	}
	for _, finding := range l.Check(l.config) {
		at, set := l.origins[finding.Key]
		for _, s := range secrets() {
			if !set && finding.Key == s.key && *s.file(&l.config) != "" {
				at, set = l.origins[s.fileKey]
			}
		}
		switch {
		case l.faulty[finding.Key]:
		case set:
			l.fault(&Error{Place: at.place, Setting: at.setting, Problem: finding.Problem})
		default:
			l.fault(&Error{Place: "default", Setting: finding.Key, Problem: finding.Problem})
		}
	}
}

// checkFiles reads the files that were named, and forgets what is in them.
func (l *loader) checkFiles() {
	for _, f := range l.fields {
		name := f.Value(l.config)
		if !f.file || name == "" || l.faulty[f.Key] || l.Unneeded != nil && l.Unneeded(f.Key) {
			continue
		}
		if _, err := l.ReadFile(name); err != nil {
			l.faulty[f.Key] = true
			at := l.origins[f.Key]
			l.fault(&Error{Place: at.place, Setting: at.setting, Problem: "got " + quote(name), Want: f.Want, Hint: reason(err)})
		}
	}
}

// checkRelations reports settings that do not go together. What was already
// reported for itself takes no part.
func (l *loader) checkRelations() {
	nats, stream, relay := l.config.NATS, l.config.Stream, l.config.Relay

	l.checkOrder("relay.retry_backoff", "relay.retry_backoff_max", relay.RetryBackoff, relay.RetryBackoffMax)
	if stream.MaxAge != 0 {
		l.checkOrder("duplicate_window", "stream_max_age", stream.DuplicateWindow, stream.MaxAge)
	}
	l.checkTogether("nats_tls_cert", "nats_tls_key", nats.TLSCert, nats.TLSKey)
	l.checkTogether("nats_tls_key", "nats_tls_cert", nats.TLSKey, nats.TLSCert)
	if nats.Creds != "" && nats.NKey != "" && !l.faulty["nats_creds"] && !l.faulty["nats_nkey"] {
		at := l.origins["nats_nkey"]
		l.fault(&Error{Place: at.place, Setting: at.setting, Problem: "set, and so is " + l.whence("nats_creds"), Want: "one of them"})
	}
}

// checkOrder reports two durations of which the lower exceeds the upper, at
// the one that somebody set.
func (l *loader) checkOrder(lowKey, highKey string, low, high time.Duration) {
	if low <= high || l.faulty[lowKey] || l.faulty[highKey] {
		return
	}
	if at, set := l.origins[highKey]; set {
		l.fault(&Error{
			Place: at.place, Setting: at.setting, Problem: "got " + formatDuration(high),
			Want: fmt.Sprintf("at least %s, which is %s", l.whence(lowKey), formatDuration(low)),
		})
		return
	}
	at := l.origins[lowKey]
	l.fault(&Error{
		Place: at.place, Setting: at.setting, Problem: "got " + formatDuration(low),
		Want: fmt.Sprintf("at most %s, which is %s", l.whence(highKey), formatDuration(high)),
	})
}

// checkTogether reports a setting that needs another, which is not set.
func (l *loader) checkTogether(key, other, value, otherValue string) {
	if value == "" || otherValue != "" || l.faulty[key] || l.faulty[other] {
		return
	}
	at := l.origins[key]
	l.fault(&Error{Place: at.place, Setting: at.setting, Problem: "set without " + other, Want: "both or neither"})
}

// whence names a setting and where its value comes from.
func (l *loader) whence(key string) string {
	if at, set := l.origins[key]; set {
		return fmt.Sprintf("%s (%s)", at.setting, at.place)
	}
	return key + " (default)"
}

// tables returns the tables a file may have.
func tables() []string { return []string{"relay", "election"} }

func isTable(key string) bool { return slices.Contains(tables(), key) }

// quote quotes a value for an error, and cuts off what nobody would read.
func quote(s string) string {
	const limit = 200
	if len(s) > limit {
		return strconv.Quote(s[:limit]) + "..."
	}
	return strconv.Quote(s)
}

// reason is why a file cannot be read, without the name that the fault gives.
func reason(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}
