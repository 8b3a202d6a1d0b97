package check

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The cluster's choice where a pod leaves user and group to it, as OpenShift makes it.
const anyUser = 1_000_680_000

// container is a process that runs as a manifest's container would: with its command, environment, files, user and groups. As
// root it sees nothing but its own tree of files, at the paths of the manifest. Otherwise paths are those of a temporary
// directory, and the user is the test's.
type container struct {
	testing.TB

	pod    pod
	spec   corev1.Container
	root   string // Of its tree.
	jailed bool
	addr   string // Where it serves HTTP, in place of all addresses of a pod of its own.
	before []string

	cmd    *exec.Cmd
	output safeBuffer
	ended  chan struct{}
}

// newContainer lays out the files. Secrets and ConfigMaps are by name, then by key.
func newContainer(tb testing.TB, p pod, files map[string]map[string]string) *container {
	tb.Helper()
	c := &container{TB: tb, pod: p, spec: p.spec.Containers[0], root: filepath.Join(tb.TempDir(), "root"), jailed: os.Geteuid() == 0, addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(tb)))}
	// The image, as the Dockerfile makes it.
	program, err := os.ReadFile(binary)
	c.must(err)
	settings, err := os.ReadFile(filepath.Join(root, "config", "relay.toml"))
	c.must(err)
	c.write("/outbox-relay", program, 0o755, 0)
	c.write("/app/config/relay.toml", settings, 0o644, 0)
	for _, v := range p.spec.Volumes {
		c.mount(v, files)
	}
	c.before = c.tree()
	return c
}

func (c *container) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *container) write(name string, content []byte, mode fs.FileMode, group int64) {
	c.Helper()
	file := filepath.Join(c.root, name)
	c.must(os.MkdirAll(filepath.Dir(file), 0o755))
	c.must(os.WriteFile(file, content, mode))
	c.must(os.Chmod(file, mode)) // Whatever the umask.
	if c.jailed {
		c.must(os.Chown(file, 0, int(group)))
	}
}

// mount lays a volume out.
func (c *container) mount(v corev1.Volume, files map[string]map[string]string) {
	c.Helper()
	name := ""
	switch {
	case v.Secret != nil:
		name = v.Secret.SecretName
	case v.ConfigMap != nil:
		name = v.ConfigMap.Name
	}
	content, ok := files[name]
	if !ok {
		c.Fatalf("there is no Secret or ConfigMap %q for the volume %s", name, v.Name)
	}
	c.fill(v, content)
}

// fill makes or replaces the files of a volume as the kubelet does: a symbolic link for each key leads by way of another link,
// ..data, to a directory, and only that link is replaced.
func (c *container) fill(v corev1.Volume, content map[string]string) {
	c.Helper()
	at := ""
	for _, m := range c.spec.VolumeMounts {
		if m.Name == v.Name {
			at = m.MountPath
		}
	}
	mode, group := fs.FileMode(0o644), int64(0)
	if v.Secret != nil {
		mode = fs.FileMode(*v.Secret.DefaultMode)
		_, _, group = c.identity()
	}
	version := fmt.Sprintf("..%d", time.Now().UnixNano())
	for key, text := range content {
		c.write(filepath.Join(at, version, key), []byte(c.place(text)), mode, group)
	}
	data := filepath.Join(c.root, at, "..data")
	c.must(os.Symlink(version, data+"_tmp"))
	c.must(os.Rename(data+"_tmp", data))
	for key := range content {
		if link := filepath.Join(c.root, at, key); !exists(link) {
			c.must(os.Symlink(filepath.Join("..data", key), link))
		}
	}
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// place turns paths of the manifest into paths of this machine where the process sees all of its files.
func (c *container) place(text string) string {
	if c.jailed {
		return text
	}
	for _, m := range c.spec.VolumeMounts {
		text = strings.ReplaceAll(text, m.MountPath+"/", filepath.Join(c.root, m.MountPath)+"/")
	}
	return text
}

// identity is the user, its group, and the group of the Secrets' files.
func (c *container) identity() (user, group, files int64) {
	s := c.pod.spec.SecurityContext
	if s.RunAsUser == nil {
		return anyUser, 0, anyUser
	}
	return *s.RunAsUser, *s.RunAsGroup, *s.FSGroup
}

// environment is that of the image and of the manifest, and nothing else.
func (c *container) environment() (env []string) {
	c.Helper()
	all := map[string]string{"OUTBOX_HTTP_ADDR": ":8080"} // Of the Dockerfile.
	for _, e := range c.spec.Env {
		if e.ValueFrom != nil {
			c.Fatalf("%s is from somewhere", e.Name)
		}
		all[e.Name] = c.place(e.Value)
	}
	if all["OUTBOX_HTTP_ADDR"] == ":8080" {
		all["OUTBOX_HTTP_ADDR"] = c.addr // Pods have addresses of their own, our processes do not.
	}
	for name, value := range all {
		env = append(env, name+"="+value)
	}
	return env
}

// start runs the container's command or, with arguments, another one in the same surroundings, as kubectl exec does.
func (c *container) start(command ...string) *container {
	c.Helper()
	if command == nil {
		command = slices.Concat([]string{"/outbox-relay"}, c.spec.Args) // The image's ENTRYPOINT.
		if c.spec.Command != nil {
			command = slices.Concat(c.spec.Command, c.spec.Args)
		}
	}
	run := &container{TB: c.TB, pod: c.pod, spec: c.spec, root: c.root, jailed: c.jailed, addr: c.addr, before: c.before, ended: make(chan struct{})}
	run.cmd = &exec.Cmd{Path: command[0], Args: command, Env: c.environment(), Dir: "/app", Stdout: &run.output, Stderr: &run.output}
	run.cmd.SysProcAttr = attributes()
	if c.jailed {
		user, group, files := c.identity()
		run.cmd.SysProcAttr.Chroot = c.root
		run.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(user), Gid: uint32(group), Groups: []uint32{uint32(files)}}
	} else {
		run.cmd.Path, run.cmd.Dir = filepath.Join(c.root, command[0]), filepath.Join(c.root, "app")
	}
	c.must(run.cmd.Start())
	go func() {
		_ = run.cmd.Wait() // How it ended is in ProcessState.
		close(run.ended)
	}()
	c.Cleanup(func() {
		_ = run.cmd.Process.Kill() // It may have ended.
		<-run.ended
		if c.Failed() {
			c.Logf("output of %q:\n%s", command, run.output.tail(6000))
		}
	})
	return run
}

// ends waits for the end of a command and returns its exit code.
func (c *container) ends(within time.Duration) int {
	c.Helper()
	select {
	case <-c.ended:
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		c.Fatalf("%q still runs after %v", c.cmd.Args, within)
		return -1
	}
}

// probe asks once what the kubelet asks.
func (c *container) probe(p *corev1.Probe) (good bool, body string) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), time.Duration(p.TimeoutSeconds)*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.addr+p.HTTPGet.Path, nil)
	c.must(err)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, err.Error()
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	c.must(err)
	return response.StatusCode >= 200 && response.StatusCode < 400, string(content)
}

// metric returns the value of a metric that has one series.
func (c *container) metric(name string) float64 {
	c.Helper()
	_, body := c.probe(&corev1.Probe{TimeoutSeconds: 10, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/metrics"}}})
	match := regexp.MustCompile(`(?m)^` + name + `(?:\{.*\})? (\S+)$`).FindStringSubmatch(body)
	if match == nil {
		c.Fatalf("no metric %s in\n%s", name, body)
	}
	value, err := strconv.ParseFloat(match[1], 64)
	c.must(err)
	return value
}

// passes waits until a probe does.
func (c *container) passes(p *corev1.Probe, within time.Duration) {
	c.Helper()
	eventually(c.TB, within, func() (bool, string) {
		select {
		case <-c.ended:
			c.Fatalf("it ended: %v", c.cmd.ProcessState)
		default:
		}
		got, body := c.probe(p)
		return got, fmt.Sprintf("GET %s: %v, %s", p.HTTPGet.Path, got, body)
	})
}

// stops asks for the end, as the kubelet does, and expects it in good time and in good order.
func (c *container) stops() {
	c.Helper()
	grace := time.Duration(*c.pod.spec.TerminationGracePeriodSeconds) * time.Second
	c.must(c.cmd.Process.Signal(syscall.SIGTERM))
	if code := c.ends(grace); code != 0 {
		c.Errorf("the exit code after SIGTERM is %d, want 0", code)
	}
}

// untouched expects that nothing was written to the image or to a volume.
func (c *container) untouched() {
	c.Helper()
	if after := c.tree(); !slices.Equal(after, c.before) {
		c.Errorf("the container's files are %q, before it ran %q", after, c.before)
	}
}

// tree lists the files, but for what the kubelet makes.
func (c *container) tree() (names []string) {
	c.Helper()
	c.must(filepath.WalkDir(c.root, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(entry.Name(), "..") {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		names = append(names, name)
		return err
	}))
	return names
}

// eventually waits until a condition holds, and otherwise says what it was like.
func eventually(tb testing.TB, within time.Duration, condition func() (bool, string)) {
	tb.Helper()
	deadline := time.Now().Add(within)
	for {
		good, is := condition()
		if good {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("not so after %v: %s", within, is)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// freePort returns a port that nobody uses just now. It is below those that the system gives to outgoing connections, and below
// those of storetest, so that nobody takes it meanwhile but by chance.
func freePort(tb testing.TB) int {
	tb.Helper()
	const lowest, highest = 10_000, 20_000
	for range 100 {
		port := lowest + rand.IntN(highest-lowest)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			_ = listener.Close() // It has accepted nothing.
			return port
		}
	}
	tb.Fatal("no port is free")
	return 0
}

// safeBuffer is a Buffer for a process that writes and a test that reads.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *safeBuffer) tail(n int) string {
	text := b.String()
	return text[max(0, len(text)-n):]
}

// with returns files with some more, or others.
func with(files map[string]map[string]string, name string, content map[string]string) map[string]map[string]string {
	files = maps.Clone(files)
	files[name] = content
	return files
}
