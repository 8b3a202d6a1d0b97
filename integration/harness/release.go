package harness

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
)

const natsModule = "github.com/nats-io/nats-server/v2"

// NATSServer returns the nats-server program of a version, such as "2.10.27". The first time, go builds it from the module
// proxy, in half a minute or so; it is kept in the user's cache directory. Without a proxy the test is skipped.
func NATSServer(tb testing.TB, version string) (program string) {
	tb.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		tb.Skipf("nowhere to keep nats-server %s: %v", version, err)
	}
	cache = filepath.Join(cache, "go-outbox")
	program = filepath.Join(cache, "nats-server-"+version)
	if _, err := os.Stat(program); err == nil {
		return program
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		tb.Skipf("nowhere to keep nats-server %s: %v", version, err)
	}
	dir, err := os.MkdirTemp(cache, "build-") //nolint:usetesting // The program is moved within a file system.
	if err != nil {
		tb.Fatal(err)
	}
	defer os.RemoveAll(dir)
	run := func(arguments ...string) error {
		cmd := exec.CommandContext(tb.Context(), "go", arguments...)
		cmd.Dir = dir // There is no go.mod.
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(arguments, " "), err, out)
		}
		return nil
	}
	if err := run("install", "-trimpath", natsModule+"@v"+version); err != nil {
		if offline := run("list", "-m", "-versions", natsModule); offline != nil {
			tb.Skipf("nats-server %s is not at %s, and cannot be built without a module proxy: %v", version, program, offline)
		}
		tb.Fatal(err)
	}
	// Several tests may build it at the same time; the last one wins.
	if err := os.Rename(filepath.Join(dir, "nats-server"), program); err != nil {
		tb.Fatal(err)
	}
	return program
}

//nolint:gochecknoglobals // Immutable.
var natsConfig = template.Must(template.New("").Parse(`
server_name: {{.Name}}
listen: "127.0.0.1:{{.Port}}"
max_payload: {{.MaxPayload}}
jetstream: {store_dir: {{printf "%q" .Store}}}
{{- if .User}}
authorization: {user: {{printf "%q" .User}}, password: {{printf "%q" .Password}}}
{{- end}}
{{- if .ClusterPort}}
cluster: {name: test, listen: "127.0.0.1:{{.ClusterPort}}", no_advertise: true, routes: [{{range .Routes}}{{printf "%q" .}} {{end}}]}
{{- end}}
`))

// released is the command that runs the nats-server of another version than ours.
func (n *NATS) released() *exec.Cmd {
	n.Helper()
	var config bytes.Buffer
	if err := natsConfig.Execute(&config, n.role); err != nil {
		n.Fatal(err)
	}
	file := filepath.Join(n.TempDir(), "nats.conf")
	if err := os.WriteFile(file, config.Bytes(), 0o600); err != nil {
		n.Fatal(err)
	}
	return exec.CommandContext(context.WithoutCancel(n.Context()), n.Program, "-c", file)
}
