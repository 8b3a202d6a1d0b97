package main

import (
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/lmittmann/tint"

	"github.com/go-outbox/go-outbox/config"
)

// process is what a command gets from its surroundings.
type process struct {
	environ        []string // As os.Environ returns it.
	stdout, stderr io.Writer
}

func (p *process) lookupEnv(name string) (value string, ok bool) {
	for _, variable := range p.environ {
		if value, ok := strings.CutPrefix(variable, name+"="); ok {
			return value, true
		}
	}
	return "", false
}

// need is how much of a configuration a command cannot do without. What is there must be right in any case: a
// misspelt setting is worth knowing of whatever brought it to light.
type need int

const (
	// needAll is for the relay.
	needAll need = iota
	// needForm is for who finds out by itself what settings in the right form are worth.
	needForm
	// needDatabase is for what does not talk to the broker: the files with its credentials and certificates
	// need not be there, as they are not in a container that only migrates.
	needDatabase
	// needNothing is for what does not talk to the database either.
	needNothing
)

// config loads the configuration. Its error lists all faults.
func (p *process) config(n need) (config.Config, error) {
	sources := config.Sources{
		LookupEnv: p.lookupEnv,
		Environ:   func() []string { return p.environ },
	}
	switch n {
	case needAll:
		sources.Check = check
	case needForm:
	case needDatabase:
		sources.Check = checkDatabase
		sources.Unneeded = func(key string) bool { return strings.HasPrefix(key, "nats_") }
	case needNothing:
		sources.Unneeded = func(string) bool { return true }
		sources.LookupEnv = func(name string) (string, bool) {
			switch name {
			case "OUTBOX_DATABASE_DSN":
				return "host=unused", true
			case "OUTBOX_DATABASE_DSN_FILE":
				return "", false
			}
			return p.lookupEnv(name)
		}
	}
	c, err := config.Load(sources)
	if err != nil {
		return config.Config{}, wrongConfig(err)
	}
	return c, nil
}

// logger returns a logger to standard error for records of at least this level.
func (p *process) logger(format config.Format, level slog.Level) *slog.Logger {
	if format == config.FormatJSON {
		return slog.New(slog.NewJSONHandler(p.stderr, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(tint.NewTextHandler(p.stderr, &tint.Options{
		Level:      level,
		TimeFormat: "2006-01-02T15:04:05.000Z07:00",
		NoColor:    !p.colour(),
	}))
}

// colour reports whether standard error is a terminal whose user did not ask for plain text, see no-color.org.
func (p *process) colour() bool {
	if value, _ := p.lookupEnv("NO_COLOR"); value != "" {
		return false
	}
	if value, _ := p.lookupEnv("TERM"); value == "dumb" {
		return false
	}
	file, ok := p.stderr.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
