package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestModuleDir(t *testing.T) {
	ended := errors.New("exit status 1")
	for _, c := range []struct {
		name, text string
		ended      error
		dir, fails string
	}{
		{"there", `{"Dir": "/m/juicefs", "Sum": "` + juiceSum + `"}`, nil, "/m/juicefs", ""},
		{"no network", `{"Error": "dial tcp: no route"}`, ended, "", "dial tcp: no route"},
		{"nothing printed", "", ended, "", "exit status 1"},
		{"ended with an error", `{"Dir": "/m/juicefs", "Sum": "` + juiceSum + `"}`, ended, "", "exit status 1"},
		{"another module", `{"Dir": "/m/juicefs", "Sum": "h1:other="}`, nil, "", `"h1:other="`},
		{"no directory", `{"Sum": "` + juiceSum + `"}`, nil, "", "no directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, err := moduleDir([]byte(c.text), c.ended)
			require.Equal(t, c.dir, dir)
			if c.fails == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.fails)
			}
		})
	}
}

// Where JuiceFS can't be had it is left out loudly, unless it was asked for by name.
func TestJuiceFSThatCannotBeHad(t *testing.T) {
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOMODCACHE", t.TempDir())
	for _, c := range []struct {
		name          string
		peers         []string
		fails, prints bool
	}{
		{"all peers", nil, false, true},
		{"by name", []string{juiceFS}, true, false},
		{"another peer", []string{"nats"}, false, false},
		{"no peer", []string{}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			printed, stderr := filepath.Join(dir, "stderr"), os.Stderr
			f, err := os.Create(printed)
			require.NoError(t, err)
			defer f.Close()
			os.Stderr = f
			sides, err := (&bench{dir: dir, bin: filepath.Join(dir, "bin"), peers: c.peers}).juiceFSSide(t.Context())
			os.Stderr = stderr
			require.Empty(t, sides)
			if c.fails {
				require.ErrorContains(t, err, juiceModule)
			} else {
				require.NoError(t, err)
			}
			text, err := os.ReadFile(printed)
			require.NoError(t, err)
			require.Equal(t, c.prints, strings.Contains(string(text), "without JuiceFS"), "%s", text)
		})
	}
}

func TestAimsBesideJuiceFS(t *testing.T) {
	aims := make(map[string]string)
	for _, w := range mountWorks("") {
		if w.juice != "none" {
			aims[w.name] = w.juice
		}
	}
	require.Equal(t, map[string]string{
		"sequential write 1 MiB, fsync": ">= 1.3",
		"random read 4 KiB, cold":       ">= 2",
		"random write 4 KiB":            ">= 10",
		"untar 5,000 files":             "<= 0.33",
		"rm -rf":                        "<= 0.33",
		"cat all, cold":                 "<= 0.33",
	}, aims)
}

func Example_printMounts() {
	works := mountWorks("")
	ours := map[string][]float64{"random write 4 KiB": {400, 300, 100}, "create": {5, 5, 5}}
	theirs := map[string][]float64{"random write 4 KiB": {10, 20, 10}, "create": {2, 2, 1}}
	printMounts(works, ours, []map[string][]float64{theirs}, func(w mountWork) string { return w.juice })
	// Output:
	// random write 4 KiB                        300         10 op/s     ratio 15.00 (10.00 to 40.00)   aim >= 10
	// create                                      5          2 /s       ratio  2.50 (2.50 to 5.00)   aim none
}

// fakeJuice is a mount whose program is a shell script that does as JuiceFS does, but
// for mounting.
func fakeJuice(t *testing.T, mount string) *juiceMount {
	dir := t.TempDir()
	b := &bench{dir: dir, bin: filepath.Join(dir, "bin")}
	require.NoError(t, os.Mkdir(b.bin, 0o755))
	script := "#!/bin/sh\ncd '" + dir + "'\ncase $1 in\nformat) echo \"$@\" > formatted;;\nmount)\n" + mount + "\nesac\n"
	require.NoError(t, os.WriteFile(filepath.Join(b.bin, juiceFS), []byte(script), 0o755))
	return &juiceMount{b: b}
}

// watched starts a program behind it, and ends well where that was ended in peace.
const watched = `sleep 1000 & : > /tmp/fuse_fd_comm.$$; echo is ready at; wait $!; [ $? = 143 ];;`

func TestJuiceFSLeavesNothingBehind(t *testing.T) {
	j := fakeJuice(t, watched)
	require.NoError(t, j.start(t.Context()))
	formatted, err := os.ReadFile(filepath.Join(j.b.dir, "formatted"))
	require.NoError(t, err)
	require.Contains(t, string(formatted), "--storage file --bucket "+j.path("bucket")+"/ badger://"+j.path("meta"))

	first := j.process.pid()
	require.Len(t, j.pids(), 2, "who watches and who serves")
	require.NoError(t, j.again(t.Context()))
	second := j.process.pid()
	require.NotEqual(t, first, second)
	require.NoError(t, j.stop())
	for _, pid := range []int{first, second} {
		require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
		require.NoFileExists(t, "/tmp/fuse_fd_comm."+strconv.Itoa(pid))
	}
	require.NoDirExists(t, filepath.Dir(j.at))
}

// Who watches may give up while who serves runs on.
func TestJuiceFSThatDoesNotComeUp(t *testing.T) {
	j := fakeJuice(t, `exec 3> alive; sleep 1000 & echo not ready; exit 1;;`)
	alive := filepath.Join(j.b.dir, "alive")
	require.NoError(t, syscall.Mkfifo(alive, 0o600))
	f, err := os.OpenFile(alive, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	require.NoError(t, err)
	defer f.Close()
	require.ErrorContains(t, j.start(t.Context()), "not ready")
	_, err = io.ReadAll(f) // until nobody has it open
	require.NoError(t, err)
	require.NoError(t, j.stop())
	require.NoDirExists(t, filepath.Dir(j.at))
}
