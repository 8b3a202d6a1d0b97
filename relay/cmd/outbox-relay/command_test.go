package main

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/config"
)

func TestWrongCommandLines(t *testing.T) {
	for _, test := range []struct {
		args string
		want string
	}{
		{"publish", `unknown command "publish" (see outbox-relay --help)`},
		{"migrat", `unknown command "migrat", did you mean migrate?`},
		{"--relay", "unknown flag: --relay (see outbox-relay --help)"},
		{"run now", `unexpected argument "now" (see outbox-relay run --help)`},
		{"version now", `unexpected argument "now"`},
		{"migrate --print --fast", "unknown flag: --fast (see outbox-relay migrate --help)"},
		{"help relay", `unknown command "relay"`},
		{"help dead lit", `unknown command "lit", did you mean list?`},
		{"dead", "want one of list, show, requeue and discard (see outbox-relay dead --help)"},
		{"dead lst", `unknown command "lst", did you mean list? (see outbox-relay dead --help)`},
		{"dead list 1", `unexpected argument "1"`},
		{"dead list --limit many", `invalid argument "many"`},
		{"dead list --limit -1", "--limit is -1"},
		{"dead show", "got 0 arguments, want one"},
		{"dead show 1 2", "got 2 arguments, want one"},
		{"dead show first", `KEY "first" is neither a seq (a number) nor an event id (a UUID)`},
		{"dead show letter:0", `KEY "letter:0"`},
		{"dead show 00000000-0000-0000-0000-000000000000", `KEY "00000000-`},
		{"dead show {6ba7b810-9dad-11d1-80b4-00c04fd430c8}", `KEY "{6ba7b810-`},
		{"dead requeue", "want KEYs, or --all"},
		{"dead requeue 1 --all", "exclude each other"},
		{"dead requeue 1 --topic users", "narrow --all"},
		{"dead requeue --topic users", "narrow --all"},
		{"dead requeue 1 x", `KEY "x"`},
		{"dead discard", "want KEYs, or --all"},
		{"dead discard --all", "add --yes"},
	} {
		t.Run(test.args, func(t *testing.T) {
			got := execute(t, environment{"OUTBOX_DATABASE_DSN": nowhere}, strings.Fields(test.args)...)
			expectCode(t, got, 2)
			expectText(t, "standard error", got.stderr, test.want)
			if !strings.HasPrefix(got.stderr, "outbox-relay: ") || got.stdout != "" {
				t.Errorf("standard error %q does not begin with the program's name, or standard output %q is not empty", got.stderr, got.stdout)
			}
		})
	}
}

func TestHelpTeaches(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"help"}, {"-h"}} {
		got := execute(t, nil, args...)
		expectCode(t, got, 0)
		expectText(t, "help", got.stdout, "select outbox_emit(", "OUTBOX_NATS_URL=embedded", "Exit codes: 0", "CONFIG_PATH",
			"help config", "dead ", "doctor ", "healthcheck ", "migrate ", "replay ", "status ", "version ")
		if lines := strings.Count(got.stdout, "\n"); lines > 60 {
			t.Errorf("help has %d lines, which nobody reads", lines)
		}
		if got.stderr != "" {
			t.Errorf("help wrote to standard error: %s", got.stderr)
		}
	}
}

func TestHelpExplainsEverySetting(t *testing.T) {
	for _, args := range [][]string{{"help", "config"}, {"config", "--help"}, {"config"}} {
		got := execute(t, nil, args...)
		expectCode(t, got, 0)
		expectText(t, "help", got.stdout, config.PathEnv, config.DefaultPath)
		for _, field := range config.Fields() {
			expectText(t, "help", got.stdout, field.Key, field.Env, field.Doc)
		}
	}
	expectText(t, "the hint", execute(t, nil).stderr, "outbox-relay help config")
}

func TestHelpOfACommandIsItsOwn(t *testing.T) {
	for args, want := range map[string]string{
		"run --help":         "SIGTERM",
		"migrate --help":     "--print",
		"healthcheck --help": "--ready",
		"dead --help":        "KEY is a dead letter's seq",
		"help dead discard":  "dead discard KEY... | --all --yes",
		"dead requeue -h":    "--aggregate-id",
		"dead list --help":   "--after",
		"help help":          "Explain a command, or every setting",
	} {
		got := execute(t, nil, strings.Fields(args)...)
		expectCode(t, got, 0)
		expectText(t, args, got.stdout, want)
		if strings.Contains(got.stdout, "OUTBOX_BATCH_SIZE") {
			t.Errorf("%s lists the settings, which is what outbox-relay help config is for", args)
		}
	}
}

func TestReadmeHasEveryCommand(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(readme), "| command | |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	for _, cmd := range newRootCommand(&process{}).Commands() {
		if !cmd.Runnable() {
			continue // A topic of the help.
		}
		expectText(t, "the table", table, "`outbox-relay "+cmd.Name())
	}
}

func TestVersion(t *testing.T) {
	old := version
	version = "v1.2.3"
	t.Cleanup(func() { version = old })
	for _, args := range []string{"version", "--version"} {
		got := execute(t, nil, args)
		expectCode(t, got, 0)
		want := "outbox-relay v1.2.3 (" + runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")\n"
		if got.stdout != want {
			t.Errorf("%s prints %q, want %q", args, got.stdout, want)
		}
	}
}
