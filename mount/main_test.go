package mount_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount"
	"github.com/gearsfs/gearsfs/persist"
)

// childEnv names what this test binary does in a process of its own.
const childEnv = "GEARSFS_MOUNT_TEST_CHILD"

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		if err := children[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(runTests(m))
}

// runTests runs the tests with temporary files of their own directory, so that
// a mount that is left behind is known to be theirs.
func runTests(m *testing.M) int {
	base, err := os.MkdirTemp("", "gearsfs-mount-test")
	if err == nil {
		err = os.Setenv("TMPDIR", base)
	}
	if err == nil {
		err = os.Chmod(base, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	for _, dir := range mountsBelow(base) {
		fmt.Fprintln(os.Stderr, "a test left a mount behind:", dir)
		if err := mount.Detach(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		code = 1
	}
	if err := os.RemoveAll(base); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// mountsBelow returns the GearsFS mounts below a directory.
func mountsBelow(base string) []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); strings.Contains(line, " fuse.gearsfs ") && strings.HasPrefix(f[4], base) {
			found = append(found, f[4])
		}
	}
	return found
}

// children are what the test binary does in a process of its own: what must
// not happen in the process that serves the mount, or is to be killed.
var children = map[string]func(args []string) error{}

func child(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	return cmd
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounts directly: needs root")
	}
}

func openVolume(t *testing.T) *dgm.Volume {
	t.Helper()
	data, err := persist.Open(filepath.Join(t.TempDir(), "data"), persist.Options{Create: true, Name: "test"})
	require.NoError(t, err)
	vol, err := dgm.OpenVolume(context.Background(), dgm.VolumeConfig{Data: data, Root: gearsfs.Root,
		Fatal: func(err error) { t.Errorf("fatal: %v", err) }})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, vol.Close()) })
	return vol
}

func session(t *testing.T, vol *dgm.Volume) *dgm.Local {
	t.Helper()
	caller := gearsfs.Root
	caller.Checked = true
	m, err := vol.Local(dgm.Client{Caller: caller, Host: "here", PID: os.Getpid(), Process: "test"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// mountOn mounts m on dir until the test ends.
func mountOn(t *testing.T, m dgm.Manager, dir, options string) *mount.Mount {
	t.Helper()
	return mountWith(t, m, dir, options, func(*mount.Options) {})
}

// holding has a mount hold what is written, as if the volume were on several
// nodes, until somebody asks.
func holding(o *mount.Options) {
	o.Several, o.HeldFor = func() bool { return true }, time.Hour
}

func mountWith(t *testing.T, m dgm.Manager, dir, options string, change func(*mount.Options)) *mount.Mount {
	t.Helper()
	o, err := mount.ParseOptions(options)
	require.NoError(t, err)
	o.Node = "unix:/test.sock"
	o.Several = func() bool { return false }
	change(&o)
	mt, err := mount.New(t.Context(), m, dir, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, mt.Unmount(ctx))
	})
	return mt
}

// fixture is a volume that is mounted, and another session of it.
type fixture struct {
	vol   *dgm.Volume
	dir   string
	other *dgm.Local
	mount *mount.Mount
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	return newFixtureWith(t, func(*mount.Options) {})
}

func newFixtureWith(t *testing.T, change func(*mount.Options)) fixture {
	t.Helper()
	needRoot(t)
	vol := openVolume(t)
	dir := t.TempDir()
	mt := mountWith(t, session(t, vol), dir, "", change)
	return fixture{vol, dir, session(t, vol), mt}
}

// ways are how a mount deals with what is written, which programs must not see.
var ways = map[string]func(*mount.Options){"at once": func(*mount.Options) {}, "held": holding}

func (f fixture) path(elem ...string) string {
	return filepath.Join(append([]string{f.dir}, elem...)...)
}

// control returns the path of a control file of a stream.
func (f fixture) control(file, key, name string) string {
	return f.path(".gears", "streams", file, key, name)
}

func (f fixture) put(t *testing.T, path string, key gearsfs.Key, records ...string) {
	t.Helper()
	put := dgm.Put{File: gearsfs.At(path), Key: key}
	for _, r := range records {
		put.Records = append(put.Records, gearsfs.NewRecord{Data: []byte(r)})
	}
	_, err := f.other.Put(t.Context(), put)
	require.NoError(t, err)
}

// records returns what stands in a stream, in order.
func (f fixture) records(t *testing.T, path string, key gearsfs.Key) []string {
	t.Helper()
	var all []string
	for after := gearsfs.Seq(0); ; {
		list, err := f.other.Peek(t.Context(), dgm.Peek{File: gearsfs.At(path), Key: key, Max: 1000, NoWait: true, Follow: true, After: after})
		if err != nil {
			require.ErrorIs(t, err, gearsfs.ErrEmpty)
			return all
		}
		for _, r := range list {
			all = append(all, string(r.Data))
			after = r.Place.Seq
		}
	}
}

func (f fixture) info(t *testing.T, path string, key gearsfs.Key) gearsfs.StreamInfo {
	t.Helper()
	info, err := f.other.Stream(t.Context(), gearsfs.At(path), key)
	require.NoError(t, err)
	return info
}

// eventually waits for what a process or the kernel does in its own time and
// tells nobody.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, 10*time.Second, 2*time.Millisecond, what)
}

// shell runs a script in the mount with a time limit.
func (f fixture) shell(t *testing.T, script string) (stdout string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Dir = f.dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), err
}

func (f fixture) mustShell(t *testing.T, script string) string {
	t.Helper()
	out, err := f.shell(t, script)
	require.NoError(t, err)
	return out
}

// ptr points at byte i of b.
func ptr(b []byte, i int) unsafe.Pointer { return unsafe.Pointer(&b[i]) }
