package test

import (
	"archive/tar"
	"bufio"
	"context"
	"debug/elf"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
)

// buildTime is how long the Dockerfile's own build may take: it compiles everything anew.
const buildTime = 8 * time.Minute

// TestDockerBuild: the Dockerfile makes an image, its first stage included, and what it makes
// serves and is reloaded. Where the base image is not there, one is made of this machine's Go:
// an engine without a registry can build nothing else.
func TestDockerBuild(t *testing.T) {
	d := &docker{}
	d.engine(t)
	known := d.images(t)
	t.Cleanup(func() { d.removeNew(t, known) })
	args := []string{"build", "-q"}
	if base := baseImage(t); known[base] == "" {
		d.importGo(t, base)
		args = append(args, "--network", "none") // all that it needs is there
	} else {
		args = append(args, "--network", "host")
	}
	d.image = dockerName()
	// The classic builder: another one would ask a registry for the base image first.
	ctx, cancel := context.WithTimeout(context.Background(), buildTime)
	defer cancel()
	build := exec.CommandContext(ctx, "docker", append(args, "-t", d.image, "..")...)
	build.Env = append(os.Environ(), "DOCKER_BUILDKIT=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}

	d.serve(t, []string{"--network", "none", "--read-only", "--user", "65534"})
	c := d.run(t, []string{"--network", "none"}, d.image, "run", "--name", "web", "--", "overlap", "serve", "--listen", ":8080")
	c.serves(1)
	c.without("web", func() {
		c.must("exec", c.name, "overlap", "reload")
		c.serves(2)
	})
	c.stop(0)
}

// baseImage is what the Dockerfile's first stage is made of.
func baseImage(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^FROM (\S+:\S+) AS build$`).FindSubmatch(data)
	if m == nil {
		t.Fatal("the Dockerfile's first stage has no base image with a tag")
	}
	return string(m[1])
}

// images are all that the engine has, the unnamed ones of build stages too, by name and by id, with
// the id of the one below.
func (d *docker) images(t testing.TB) map[string]string {
	t.Helper()
	found := map[string]string{}
	ids := strings.Fields(d.must(t, "images", "-a", "-q", "--no-trunc"))
	if len(ids) == 0 {
		return found
	}
	slices.Sort(ids)
	format := `{{.Id}} {{or .Parent "-"}}{{range .RepoTags}} {{.}}{{end}}`
	out, _ := d.docker(append([]string{"inspect", "-f", format}, slices.Compact(ids)...)...) // some may be gone by now
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		if len(words) < 2 || !strings.HasPrefix(words[0], "sha256:") {
			continue
		}
		found[words[0]] = words[1]
		for _, name := range words[2:] {
			found[name] = words[1]
		}
	}
	return found
}

// removeNew removes the images of the build: what descends from the base image, and that itself
// where it was not there before.
func (d *docker) removeNew(t *testing.T, known map[string]string) {
	t.Helper()
	d.docker("rmi", "-f", d.image)
	base := baseImage(t)
	root, err := d.docker("inspect", "-f", "{{.Id}}", base)
	if err != nil {
		return // there was no import
	}
	now := d.images(t)
	var below func(id string) bool
	below = func(id string) bool { return id == root || now[id] != "" && now[id] != "-" && below(now[id]) }
	// The leaves first; what is only below them goes with them.
	for again := true; again; {
		again = false
		for id := range now {
			leaf := true
			for _, parent := range now {
				leaf = leaf && parent != id
			}
			if strings.HasPrefix(id, "sha256:") && known[id] == "" && leaf && id != root && below(id) {
				if out, err := d.docker("rmi", id); err != nil {
					t.Errorf("remove the image of a build stage: %s", out)
					return
				}
				again = true
			}
		}
		now = d.images(t)
	}
	if known[base] == "" {
		if out, err := d.docker("rmi", base); err != nil {
			t.Errorf("remove the base image: %s", out)
		}
	}
	for id := range d.images(t) {
		if strings.HasPrefix(id, "sha256:") && known[id] == "" && below(id) {
			t.Errorf("image %s is left", id)
		}
	}
}

// importGo makes a base image of a static shell, the Go that runs this test, and the modules that
// the project needs.
func (d *docker) importGo(t *testing.T, name string) {
	t.Helper()
	shell := staticShell(t)
	root := goOutput(t, "env", "GOROOT")
	if out, err := exec.Command("go", "mod", "download").CombinedOutput(); err != nil {
		lacking(t, "modules are missing, and the tests have no network (%v): go mod download\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "import",
		"--change", "ENV PATH=/usr/local/go/bin:/bin GOPATH=/go GOTOOLCHAIN=local GOPROXY=file:///modules GOSUMDB=off",
		"-", name)
	to, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(to)
	err = addFile(w, "bin/busybox", shell)
	for _, tool := range []string{"sh", "mkdir", "rm", "cat"} {
		if err == nil {
			err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + tool, Linkname: "busybox", Mode: 0o777})
		}
	}
	if err == nil {
		err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777})
	}
	if err == nil {
		err = addGo(w, root)
	}
	if err == nil {
		err = addModules(w, t)
	}
	if err == nil {
		err = w.Close()
	}
	to.Close()
	if ended := cmd.Wait(); err != nil || ended != nil {
		t.Fatalf("import a base image: %v, %v\n%s", err, ended, said.String())
	}
}

// staticShell is a busybox that needs no libraries.
func staticShell(t *testing.T) string {
	t.Helper()
	file, err := exec.LookPath("busybox")
	if err == nil {
		var f *elf.File
		if f, err = elf.Open(file); err == nil {
			defer f.Close()
			if !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
				return file
			}
		}
	}
	lacking(t, "a static busybox is missing (%v): apt-get install busybox-static", err)
	return ""
}

func goOutput(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("go", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// addGo adds what of a Go installation compiles.
func addGo(w *tar.Writer, root string) error {
	return filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir() && (slices.Contains([]string{"api", "doc", "misc", "test", ".git"}, name) || e.Name() == "testdata"):
			return filepath.SkipDir
		case !e.Type().IsRegular() || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		return addFile(w, path.Join("usr/local/go", filepath.ToSlash(name)), file)
	})
}

// addModules adds the modules that go.sum names, as a proxy's files.
func addModules(w *tar.Writer, t *testing.T) error {
	cache := filepath.Join(goOutput(t, "env", "GOMODCACHE"), "cache", "download")
	sums, err := os.Open("../go.sum")
	if err != nil {
		return err
	}
	defer sums.Close()
	added := map[string]bool{}
	for lines := bufio.NewScanner(sums); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) != 3 {
			continue
		}
		version, _ := strings.CutSuffix(words[1], "/go.mod")
		for _, kind := range []string{".info", ".mod", ".zip"} {
			name := path.Join(escaped(words[0]), "@v", escaped(version)+kind)
			file := filepath.Join(cache, filepath.FromSlash(name))
			if _, err := os.Stat(file); err != nil || added[name] {
				continue // of some only the requirements are needed
			}
			added[name] = true
			if err := addFile(w, "modules/"+name, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// escaped is a module path or version as a proxy writes it: "!x" for "X".
func escaped(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsUpper(r) {
			b.WriteByte('!')
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}

func addFile(w *tar.Writer, name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// No time but the file's own: without it the toolchain would be rebuilt.
	h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()) | 0o444, Size: info.Size(), ModTime: info.ModTime()}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
