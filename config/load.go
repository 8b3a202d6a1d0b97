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

// Sources is where [Load] finds settings. Its zero value is the process's own environment, not searched for unknown
// variables, and file system.
type Sources struct {
	// LookupEnv returns a variable of the environment. Default os.LookupEnv.
	LookupEnv func(name string) (value string, ok bool)

	// Environ lists the environment as "name=value", as os.Environ does. If it is set, OUTBOX_ variables that do not exist
	// are faults. Default nil.
	Environ func() []string

	// ReadFile reads the configuration, and the files that it names, to see that they can be read. The default reads regular
	// files of at most a mebibyte. With another function the relay is not asked about the files.
	ReadFile func(name string) ([]byte, error)

	// Need is what the configuration is for. Default [NeedRelay].
	Need Need
}

// Need is how much of a configuration a program cannot do without. What is there must be right in any case: a misspelt
// setting is worth knowing of whatever brought it to light.
type Need int

const (
	// NeedRelay is for a relay: [relay.New] takes the configuration.
	NeedRelay Need = iota

	// NeedDatabase is for programs that do not talk to the broker: the files with its credentials and certificates need
	// not be there, as they are not in a container that only migrates.
	NeedDatabase

	// NeedValues is for programs that find out by themselves what a relay would refuse. Each value is one that its setting
	// accepts, but for the DSN and the subject, which can be anything; that they fit one another is not checked.
	NeedValues

	// NeedNothing is for programs that talk to nobody: the DSN may be missing, or anything, and all files may be missing.
	NeedNothing
)

// maxFileSize is the most that readFile reads.
const maxFileSize = 1 << 20

// readFile reads a regular file of at most maxFileSize bytes. It would have to wait for what a pipe gives, and some devices
// never end.
func readFile(name string) ([]byte, error) {
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
	data, err := io.ReadAll(io.LimitReader(file, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("more than %d bytes", maxFileSize)}
	}
	return data, err
}

// Load reads the configuration from its sources and checks it. If the error is not nil, it is [Errors], which has every
// fault, and the Config is not to be used.
func Load(src Sources) (Config, error) {
	l := &loader{
		Sources:   src,
		fields:    Fields(),
		config:    Default(),
		origins:   make(map[string]origin),
		faulty:    make(map[string]bool),
		realFiles: src.ReadFile == nil,
	}
	if l.LookupEnv == nil {
		l.LookupEnv = os.LookupEnv
	}
	if l.realFiles {
		l.ReadFile = readFile
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
	l.askRelay()
	if len(l.faults) > 0 {
		return Config{}, l.faults
	}
	return l.config, nil
}

// loader is one run of Load.
type loader struct {
	Sources
	fields    []Field
	config    Config
	file      string // The file that was read, if any.
	broken    bool   // There is a file, but it could not be read.
	realFiles bool   // The files are those of the file system.
	faults    Errors // In the order in which they were found.

	// Both by the field's key.
	origins map[string]origin // Where a value was set, if anywhere.
	faulty  map[string]bool   // Set, but wrongly.
}

// origin is where a setting was made, and under which name.
type origin struct{ place, setting string }

func (l *loader) fault(e *Error) { l.faults = append(l.faults, e) }

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
	for _, e := range entries {
		l.applyEntry(e)
	}
}

func (l *loader) applyEntry(e entry) {
	at := origin{e.place, e.key}
	if isTable(e.key) {
		l.fault(&Error{Place: e.place, Setting: e.key, Problem: "not a table", Want: "[" + e.key + "]"})
		return
	}
	i := slices.IndexFunc(l.fields, func(f Field) bool { return e.key == f.Key || e.key == f.alias })
	if _, isMap := e.value.(map[string]any); isMap {
		l.fault(l.unknownTable(e, i >= 0))
		return
	}
	if i < 0 {
		l.fault(&Error{Place: e.place, Setting: e.key, Problem: "unknown key", Hint: suggestKey(e.key, l.fields)})
		return
	}
	f := l.fields[i]
	text, ok := textOf(e.value, f.kind.typ)
	if !ok {
		l.faulty[f.Key] = true
		l.fault(&Error{Place: e.place, Setting: e.key, Problem: "got " + describe(e.value), Want: f.Want})
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

// apply sets a field to what text says, or records the fault in it; value is text as it was written.
func (l *loader) apply(f Field, at origin, text string, value any) {
	err := f.kind.parse(&l.config, text)
	if err != nil && l.takesAny(f.Key) {
		f.kind.keep(&l.config, text)
		err = nil
	}
	if err != nil {
		l.faulty[f.Key] = true
		fault := f.fault(err, "got "+describe(value))
		fault.Place, fault.Setting = at.place, at.setting
		l.fault(fault)
		return
	}
	l.origins[f.Key] = at
}

// takesAny reports whether a setting is not checked, since nobody needs it, or who needs it finds out.
func (l *loader) takesAny(key string) bool {
	switch key {
	case dsnKey:
		return l.Need == NeedValues || l.Need == NeedNothing
	case subjectKey:
		return l.Need == NeedValues
	default:
		return false
	}
}

func (l *loader) unknownTable(e entry, isKey bool) *Error {
	fault := &Error{Place: e.place, Setting: "[" + e.key + "]", Problem: "unknown table", Want: "[" + strings.Join(tables(), "] or [") + "]"}
	if isKey {
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
	if l.broken || l.Need == NeedNothing {
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
	err = l.fields[i].kind.parse(&l.config, strings.TrimRight(string(data), "\r\n"))
	if err != nil && !l.takesAny(s.key) {
		l.faulty[s.fileKey] = true
		fault := l.fields[i].fault(err, "what it says is not accepted")
		fault.Place, fault.Setting = at.place, at.setting
		fault.Problem = "the file " + quote(name) + ": " + fault.Problem
		l.fault(fault)
	}
}

// needsFile reports whether the file that a setting names must be there.
func (l *loader) needsFile(key string) bool {
	return l.Need != NeedNothing && (l.Need != NeedDatabase || !strings.HasPrefix(key, "nats_"))
}

// checkFiles reads the files that were named, and forgets what is in them.
func (l *loader) checkFiles() {
	for _, f := range l.fields {
		name := f.Value(l.config)
		if !f.file || name == "" || l.faulty[f.Key] || !l.needsFile(f.Key) {
			continue
		}
		if _, err := l.ReadFile(name); err != nil {
			l.faulty[f.Key] = true
			at := l.origins[f.Key]
			l.fault(&Error{Place: at.place, Setting: at.setting, Problem: "got " + quote(name), Want: f.Want, Hint: reason(err)})
		}
	}
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
