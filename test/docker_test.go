package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDocker: overlap as PID 1 of real containers, under the engine's default seccomp profile,
// as root and as another user, with a root file system that can't be written to.
func TestDocker(t *testing.T) {
	d := newDocker(t)
	root, nobody := []string{"--network", "none"}, []string{"--network", "none", "--user", "65534", "--read-only"}
	// Not parallel to the other tests, and together: a container mostly waits.
	t.Run("group", func(t *testing.T) {
		for user, flags := range map[string][]string{"root": root, "nobody": nobody} {
			parallel(t, "reload/"+user, func(t *testing.T) { d.reloads(t, flags) })
			parallel(t, "orphans/"+user, func(t *testing.T) { d.orphans(t, flags) })
			parallel(t, "serve/"+user, func(t *testing.T) { d.serve(t, flags) })
			parallel(t, "datagrams/"+user, func(t *testing.T) { d.datagrams(t, flags) })
			parallel(t, "exit codes/"+user, func(t *testing.T) { d.exitCodes(t, flags) })
		}
		// Where it is not PID 1 itself, and where the profile is wider.
		parallel(t, "reload/init", func(t *testing.T) { d.reloads(t, append(slices.Clone(root), "--init")) })
		parallel(t, "reload/ptrace", func(t *testing.T) { d.reloads(t, append(slices.Clone(root), "--cap-add", "SYS_PTRACE")) })
		// Root without SYS_PTRACE, where pidfd_getfd is refused, and where it is not.
		parallel(t, "another user/default", func(t *testing.T) { d.anotherUser(t, root) })
		parallel(t, "another user/unconfined", func(t *testing.T) {
			d.anotherUser(t, append(slices.Clone(root), "--security-opt", "seccomp=unconfined"))
		})
		parallel(t, "two containers", d.two)
	})
}

func parallel(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		f(t)
	})
}

// reloads: the program is replaced inside the running container, each way that there is, and no
// client notices.
func (d *docker) reloads(t *testing.T, flags []string) {
	c := d.run(t, append(slices.Clone(flags), "--health-interval", "1s"), d.programs, "fixture", "--listen", ":8080", "--text", "old")
	c.serves(1)
	c.until("wait until it is healthy", func() error {
		if s := c.inspect("{{.State.Health.Status}}"); s != "healthy" {
			return errors.New(s)
		}
		return nil
	})
	c.without("fixture", func() {
		c.must("exec", c.name, "overlap", "reload")
		c.serves(2)
		d.must(t, "kill", "-s", "HUP", c.name)
		c.serves(3)
		d.must(t, "kill", "-s", "USR1", c.name) // the program's
		// PID 1 must not exit: a second start becomes a reload.
		c.must("exec", c.name, "overlap", "run", "--name", "fixture", "--", "fixture", "--listen", ":8080", "--text", "new")
		c.serves(4)
		c.must("exec", c.name, "overlap", "reload", "fixture", "--", "fixture", "--listen", ":8080", "--text", "newer")
	})
	c.until("wait until USR1 is passed on", func() error {
		if out := c.must("logs", c.name); !strings.Contains(out, "fixture: got USR1") {
			return errors.New(out)
		}
		return nil
	})
	if text := c.get("/"); text != "newer" {
		t.Errorf("the last generation answers %q", text)
	}
	if out, err := d.docker("exec", c.name, "overlap", "reload", "--", "fixture", "--exit", "4"); err == nil || !strings.Contains(out, "exit status 4") {
		t.Errorf("reload with a program that fails: %v, %s", err, out)
	}
	c.stop(0)
}

// datagrams: under the engine's profile too, where the program's descriptors can't be copied, a UDP
// port is handed over, and what reached the old generation is answered.
func (d *docker) datagrams(t *testing.T, flags []string) {
	c := d.run(t, append(slices.Clone(flags), "--entrypoint", "overlap"), d.programs, "run", "--stop-delay", "200ms",
		"--listen", ":8080", "--listen", "udp::8053", "--", "fixture", "--listen", ":8080", "--udp", ":8053")
	c.serves(1)
	c.without("fixture", func() {
		for n := range 5 {
			c.must("exec", c.name, "overlap", "reload")
			c.serves(2 + n)
		}
	}, "--udp")
	if out := c.must("logs", c.name); !strings.Contains(out, "the program's sockets are made by the launcher") {
		t.Errorf("the profile lets descriptors be copied, so the test proves nothing: %s", out)
	}
	c.stop(0)
}

// anotherUser: a program that becomes another user by itself, before it binds, is replaced too.
func (d *docker) anotherUser(t *testing.T, flags []string) {
	c := d.run(t, flags, d.programs, "fixture", "--user", "65534", "--listen", ":8080")
	c.serves(1)
	c.without("fixture", func() {
		for n := range 3 {
			c.must("exec", c.name, "overlap", "reload")
			c.serves(2 + n)
		}
	})
	c.stop(0)
}

// orphans: PID 1 waits for processes that lost their parent. Without it they would stay.
func (d *docker) orphans(t *testing.T, flags []string) {
	c := d.run(t, flags, d.programs, "fixture", "--listen", ":8080")
	c.serves(1)
	c.get("/orphans")
	c.until("wait until no zombie is left", func() error {
		if s := c.get("/zombies"); s != "zombies=0" {
			return errors.New(s)
		}
		return nil
	})
	c.stop(0)

	alone := d.run(t, append(slices.Clone(flags), "--entrypoint", "fixture"), d.programs, "--listen", ":8080")
	alone.until("wait for the program", func() error {
		_, err := d.docker("exec", alone.name, "fixture", "-get", "http://127.0.0.1:8080/")
		return err
	})
	alone.get("/orphans")
	alone.until("wait for a zombie", func() error {
		if s := alone.get("/zombies"); s == "zombies=0" {
			return errors.New("there is none without overlap, so the test proves nothing")
		}
		return nil
	})
}

// serve: the image by itself.
func (d *docker) serve(t *testing.T, flags []string) {
	c := d.run(t, flags, d.image)
	c.until("wait until it serves", func() error {
		_, err := d.docker("exec", c.name, "overlap", "status")
		return err
	})
	if out, err := d.docker("exec", c.name, "overlap", "reload"); err == nil || !strings.Contains(out, "overlap run -- COMMAND") {
		t.Errorf("reload of a server that is PID 1: %v, %s", err, out)
	}
	c.stop(0)
}

// exitCodes: the program's code is the container's.
func (d *docker) exitCodes(t *testing.T, flags []string) {
	for _, test := range []struct {
		code  int
		words []string
	}{
		{7, []string{"fixture", "--exit", "7"}},
		{143, []string{"fixture", "--kill", "TERM"}},
		{127, []string{"no-such-program"}},
		{126, []string{"/srv"}},
		{125, []string{"overlap", "run", "--", "fixture", "--listen", ":8080"}},
	} {
		c := d.run(t, flags, d.programs, test.words...)
		c.wait(test.code)
	}
	c := d.run(t, flags, d.programs, "fixture", "--listen", ":8080", "--code", "3")
	c.serves(1)
	c.stop(3)
}

// two: containers on the host's network with a volume for the state hand over to each other,
// though neither sees the other's processes.
func (d *docker) two(t *testing.T) {
	volume := dockerName()
	d.must(t, "volume", "create", volume)
	t.Cleanup(func() { d.docker("volume", "rm", "-f", volume) })
	// An address of the loopback that nobody else will have.
	addr := fmt.Sprintf("127.%d.%d.%d:%d", 80+rand.N(100), rand.N(250), 1+rand.N(250), 20000+rand.N(10000))
	shared := []string{"--network", "host", "--volume", volume + ":/run/overlap"}
	first := d.run(t, shared, d.programs, "fixture", "--listen", addr, "--text", "one")
	first.serves(1)
	client := d.run(t, append(slices.Clone(shared), "--entrypoint", "fixture"), d.programs, "--listen", "127.0.0.1:0")
	var second *container
	client.without("fixture", func() {
		second = d.run(t, shared, d.programs, "fixture", "--listen", addr, "--text", "two")
		second.serves(2)
		first.wait(0)
		second.must("exec", second.name, "overlap", "reload")
		second.serves(3)
	})
	if out := first.must("logs", first.name); !strings.Contains(out, "a newer launcher has taken over, this one ends") {
		t.Errorf("the first said: %s", out)
	}
	if text := strings.TrimSpace(client.must("exec", client.name, "fixture", "-get", "http://"+addr)); text != "two" {
		t.Errorf("%q answers", text)
	}
	second.stop(0)
}

// docker is an engine with the images of the tests.
type docker struct {
	image    string // the project's own, as its Dockerfile has it
	programs string // with the fixture, and overlap as the entrypoint
}

// newDocker makes the images; they, and what is made of them, are removed with the test.
func newDocker(t *testing.T) *docker {
	t.Helper()
	d := &docker{}
	d.engine(t)
	dir := t.TempDir()
	for name, pkg := range map[string]string{"overlap": "overlap", "fixture": "overlap/test/fixture/command"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	// An engine without a registry has no first stage to build in: the binary is there already.
	final := finalStage(t)
	d.image = d.build(t, dir, strings.Replace(final, "COPY --from=build /overlap ", "COPY overlap ", 1))
	d.programs = d.build(t, dir, strings.Join([]string{
		"FROM " + d.image,
		"COPY fixture /usr/local/bin/fixture",
		`HEALTHCHECK CMD ["overlap", "status"]`,
		`ENTRYPOINT ["overlap", "run", "--stop-delay", "200ms", "--"]`,
		"",
	}, "\n"))
	return d
}

// engine skips the test where there is none.
func (d *docker) engine(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("docker"); err != nil {
		lacking(t, "docker is missing: apt-get install docker.io")
	}
	if out, err := d.docker("version", "--format", "{{.Server.Os}} {{.Server.Version}}"); err != nil || !strings.HasPrefix(out, "linux ") {
		lacking(t, "no Docker engine for Linux answers (%v): %s", err, out)
	}
}

// finalStage is what the Dockerfile's image is made of.
func finalStage(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	i := strings.LastIndex(string(data), "\nFROM ")
	if i < 0 {
		t.Fatal("the Dockerfile has one stage only")
	}
	return string(data[i+1:])
}

// TestDockerfile: the image has nothing but the static binary, where images that are built on it
// look for it.
func TestDockerfile(t *testing.T) {
	data, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"CGO_ENABLED=0 go build", " -o /overlap ."} {
		if !bytes.Contains(data, []byte(line)) {
			t.Errorf("no %q in the Dockerfile", line)
		}
	}
	final := finalStage(t)
	for _, line := range []string{"FROM scratch\n", "COPY --from=build /overlap /usr/local/bin/overlap\n", "ENTRYPOINT [\"overlap\"]\n", "CMD [\"serve\"]\n"} {
		if !strings.Contains(final, line) {
			t.Errorf("no %q in the Dockerfile's last stage", line)
		}
	}
}

func (d *docker) build(t *testing.T, dir, file string) string {
	t.Helper()
	name := dockerName()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := d.docker("rmi", "-f", name); err != nil && !strings.Contains(out, "No such image") {
			t.Errorf("remove an image: %s", out)
		}
	})
	d.must(t, "build", "-q", "-t", name, dir)
	return name
}

func dockerName() string {
	return fmt.Sprintf("overlap-test-%d-%08x", os.Getpid(), rand.Uint32())
}

// docker runs a command of the client's.
func (d *docker) docker(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (d *docker) must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := d.docker(args...)
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// container is one that was started.
type container struct {
	t    testing.TB
	d    *docker
	name string
}

// run starts a container; it is removed with the test.
func (d *docker) run(t testing.TB, flags []string, image string, words ...string) *container {
	t.Helper()
	c := &container{t: t, d: d, name: dockerName()}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := d.docker("logs", c.name)
			t.Logf("%s said:\n%s", c.name, out)
		}
		if out, err := d.docker("rm", "-f", "-v", c.name); err != nil && !strings.Contains(out, "No such container") {
			t.Errorf("remove a container: %s", out)
		}
	})
	args := append([]string{"run", "-d", "--name", c.name}, flags...)
	d.must(t, append(append(args, image), words...)...)
	return c
}

func (c *container) must(args ...string) string { c.t.Helper(); return c.d.must(c.t, args...) }

func (c *container) until(what string, is func() error) { c.t.Helper(); until(c.t, what, is) }

func (c *container) inspect(format string) string {
	c.t.Helper()
	return c.must("inspect", "-f", format, c.name)
}

// serves waits until a generation serves.
func (c *container) serves(generation int) {
	c.t.Helper()
	c.until(fmt.Sprintf("wait until generation %d serves", generation), func() error {
		out, err := c.d.docker("exec", c.name, "overlap", "status", "--json")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if !strings.Contains(out, fmt.Sprintf(`"generation":%d,`, generation)) {
			return errors.New(out)
		}
		return nil
	})
}

func (c *container) get(path string) string {
	c.t.Helper()
	return c.must("exec", c.name, "fixture", "-get", "http://127.0.0.1:8080"+path)
}

// without has clients in the container while f runs, and fails the test for a request that
// failed.
func (c *container) without(service string, f func(), more ...string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var out, said bytes.Buffer
	// A rate, so that nothing on the way (connection tracking, ports) is what is measured.
	if more == nil {
		more = []string{"--mode", "close"}
	}
	cmd := exec.CommandContext(ctx, "docker", append([]string{"exec", c.name, "overlap", "bench", "--name", service, "--reload-every", "0",
		"--clients", "16", "--rate", "300", "--duration", "4s", "--timeout", "30s", "--json"}, more...)...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	defer func() {
		err := <-done
		var result struct {
			Requests, Failed int
		}
		if jerr := json.Unmarshal(out.Bytes(), &result); err != nil || jerr != nil || result.Requests == 0 || result.Failed > 0 {
			c.t.Errorf("%d of %d requests failed (%v, %v)\n%s%s", result.Failed, result.Requests, err, jerr, out.Bytes(), said.Bytes())
		}
	}()
	f()
}

// stop ends the container within the grace period, with an exit code.
func (c *container) stop(code int) {
	c.t.Helper()
	began := time.Now()
	c.must("stop", "-t", "30", c.name)
	if took := time.Since(began); took > 25*time.Second {
		c.t.Errorf("the stop took %s", took)
	}
	c.wait(code)
}

// wait waits for the container's end.
func (c *container) wait(code int) {
	c.t.Helper()
	if got := c.must("wait", c.name); got != fmt.Sprint(code) {
		out, _ := c.d.docker("logs", c.name)
		c.t.Errorf("exit code %s, not %d, and it said:\n%s", got, code, out)
	}
}
