package main

import (
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/lmittmann/tint"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/relay"
)

// process is what a command knows of the process that it runs in.
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

// config loads the configuration. Its error lists all faults.
func (p *process) config(need config.Need) (config.Config, error) {
	c, err := config.Load(config.Sources{
		LookupEnv: p.lookupEnv,
		Environ:   func() []string { return p.environ },
		Need:      need,
	})
	if err != nil {
		return config.Config{}, wrongConfig(err)
	}
	return c, nil
}

// unstarted stands for the URL of an embedded server that does not run yet.
const unstarted = "nats://embedded"

// relayConfig returns the relay's part of a configuration, with the URL of the embedded server if it asks for one.
func relayConfig(c config.Config, embeddedURL string) relay.Config {
	r := c.RelayConfig()
	if c.NATS.Embedded() {
		r.NATS = embeddedURL
	}
	return r
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
