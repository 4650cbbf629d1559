package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The main job on real input: the Go distribution's source tree is copied into
// the mount and compared, a program is built from it there, all its words are
// counted on another node, and after kill -9 it is all still there.
func TestRealInput(t *testing.T) {
	t.Parallel()
	goroot := strings.TrimSpace(must(t, "", "go", "env", "GOROOT"))
	source := filepath.Join(goroot, "src")
	files := strings.Count(must(t, source, "find", ".", "-type", "f"), "\n")
	require.GreaterOrEqual(t, files, 5000, "a real tree")
	d := startMounted(t)
	tree := filepath.Join(d.mount, "go", "src")
	require.NoError(t, os.Mkdir(filepath.Dir(tree), 0o755))

	must(t, "", "cp", "-a", source, tree)
	must(t, "", "diff", "-r", "--no-dereference", source, tree)
	t.Logf("%d files are the same", files)

	buildFromTree(t, goroot, tree)
	countTree(t, source, tree)

	must(t, d.mount, "sync", "-f", ".")
	d.kill()
	d.start()
	must(t, "", "diff", "-r", "--no-dereference", source, tree)
	require.Equal(t, files, strings.Count(must(t, tree, "find", ".", "-type", "f"), "\n"))
}

// The same over three nodes, with a mount each: copied through one, compared
// through another and built through the third. The leader is killed in the
// middle of the copying, and one is dead while it is built.
func TestRealInputCluster(t *testing.T) {
	goroot := strings.TrimSpace(must(t, "", "go", "env", "GOROOT"))
	source := filepath.Join(goroot, "src")
	c := startMountedCluster(t, 3)
	leader := c.leader()
	first, second := c.nodes[(leader+1)%3], c.nodes[(leader+2)%3]
	tree := func(d *daemon) string { return filepath.Join(d.mount, "go", "src") }
	require.NoError(t, os.Mkdir(filepath.Dir(tree(first)), 0o755))

	copied := make(chan error, 1)
	go func() {
		out, err := exec.Command("cp", "-a", source, tree(first)).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("cp: %w: %s", err, out)
		}
		copied <- err
	}()
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(tree(second), "cmd", "compile"))
		return err == nil
	}, 5*runWithin, 20*time.Millisecond, "it is in the middle")
	c.nodes[leader].kill()
	require.NoError(t, <-copied)
	c.nodes[leader].start()
	must(t, "", "diff", "-r", "--no-dereference", source, tree(second))

	leader = c.leader()
	first, second = c.nodes[(leader+1)%3], c.nodes[(leader+2)%3]
	c.nodes[leader].kill()
	buildFromTree(t, goroot, tree(first))
	c.nodes[leader].start()
	countTree(t, source, tree(second))
	must(t, "", "diff", "-r", "--no-dereference", source, tree(c.nodes[leader]))
	c.verify()
}

// buildFromTree builds gofmt from its copy: the copied directory lies in the
// mount beside the rest of a Go distribution, so its standard library is the
// copied one too.
func buildFromTree(t *testing.T, goroot, tree string) {
	t.Helper()
	root := filepath.Dir(tree)
	for _, part := range []string{"bin", "pkg", "VERSION", "go.env"} {
		require.NoError(t, os.Symlink(filepath.Join(goroot, part), filepath.Join(root, part)))
	}
	c := command{
		dir: filepath.Join(tree, "cmd", "gofmt"),
		env: []string{"GOROOT=" + root, "GOCACHE=" + dir(t), "GOTOOLCHAIN=local", "GOFLAGS=", "GOWORK=off"},
	}
	program := filepath.Join(root, "gofmt")
	c.must(t, "go", "build", "-o", program, ".")
	ugly := filepath.Join(root, "ugly.go")
	require.NoError(t, os.WriteFile(ugly, []byte("package  ugly\nvar  x=1\n"), 0o644))
	require.Equal(t, "package ugly\n\nvar x = 1\n", must(t, "", program, ugly))
}

// countTree counts the words of all files of the tree on another node.
func countTree(t *testing.T, source, tree string) {
	t.Helper()
	const all = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 cat"
	whole := filepath.Join(filepath.Dir(tree), "whole")
	must(t, tree, "sh", "-c", all+" > "+whole)
	want := must(t, source, "sh", "-c", all+" | LC_ALL=C wc -lwc")

	other := startDaemon(t)
	other.startWorker()
	got := other.gearsfs("wordcount", "--node", other.addr, whole)
	require.Zero(t, got.status, got.stderr)
	require.Equal(t, strings.Fields(want), strings.Fields(got.stdout)[:3])
	t.Logf("counted: %s", strings.TrimSpace(got.stdout))
}
