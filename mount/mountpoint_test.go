package mount_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount"
	"github.com/gearsfs/gearsfs/persist"
)

func init() {
	children["mount"] = mountAndWait
}

// mountAndWait mounts a volume in a process of its own, to be killed.
func mountAndWait(args []string) error {
	data, err := persist.Open(args[0], persist.Options{Create: true, Name: "child"})
	if err != nil {
		return err
	}
	vol, err := dgm.OpenVolume(context.Background(), dgm.VolumeConfig{Data: data,
		Root: gearsfs.Caller{UID: uint32(os.Geteuid()), GIDs: []uint32{uint32(os.Getegid())}}})
	if err != nil {
		return err
	}
	m, err := vol.Local(dgm.Client{Caller: gearsfs.Caller{GIDs: []uint32{0}, Checked: true}, Process: "child"})
	if err != nil {
		return err
	}
	mt, err := mount.New(context.Background(), m, args[1], mount.DefaultOptions())
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	mt.Wait()
	return nil
}

// startMount mounts in a process of its own and returns when it is mounted.
func startMount(t *testing.T, data, dir string) *exec.Cmd {
	t.Helper()
	cmd := child("mount", data, dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, len("mounted\n")))
	require.NoError(t, err)
	return cmd
}

func tryMount(t *testing.T, dir, options string) error {
	t.Helper()
	o, err := mount.ParseOptions(options)
	require.NoError(t, err)
	mt, err := mount.New(t.Context(), session(t, openVolume(t)), dir, o)
	if err != nil {
		return err
	}
	t.Cleanup(func() { require.NoError(t, mt.Unmount(context.Background())) })
	return nil
}

func TestBadMountPoints(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	require.ErrorContains(t, tryMount(t, filepath.Join(dir, "missing"), ""), "no such directory")
	require.ErrorContains(t, tryMount(t, file, ""), "not a directory")
	require.ErrorContains(t, tryMount(t, dir, ""), "not empty")
	require.ErrorContains(t, tryMount(t, "/proc", ""), "busy: proc (proc) is mounted there")
	require.NoError(t, tryMount(t, dir, "nonempty"))
	_, err := os.Stat(file)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, tryMount(t, dir, ""), "busy: gearsfs (fuse.gearsfs) is mounted there")
}

func TestMountThroughLinkAndBlank(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "with blank")
	require.NoError(t, os.Mkdir(dir, 0o755))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	vol := openVolume(t)
	mt := mountOn(t, session(t, vol), link, "fsname=my volume,ro")
	require.Equal(t, dir, mt.Dir())
	require.ErrorIs(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644), unix.EROFS)
	require.ErrorContains(t, tryMount(t, dir, ""), "busy: my volume")
	require.NoError(t, mount.Detach(link))
	mt.Wait()
	require.ErrorContains(t, mount.Detach(link), "not a mount point")
}

func TestDetachErrors(t *testing.T) {
	needRoot(t)
	require.ErrorContains(t, mount.Detach(t.TempDir()), "not a mount point")
	require.ErrorContains(t, mount.Detach("/no/such/dir"), "not a mount point")
	require.ErrorContains(t, mount.Detach("/proc"), "not a GearsFS")
}

// TestDeadMount kills a mount: what waits fails, and the mount point can be
// mounted again, with all that was written there.
func TestDeadMount(t *testing.T) {
	needRoot(t)
	data, dir := filepath.Join(t.TempDir(), "data"), t.TempDir()
	cmd := startMount(t, data, dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), []byte("kept"), 0o644))
	cat := exec.Command("cat", filepath.Join(dir, ".gears/streams/q/jobs/take"))
	require.NoError(t, cat.Start())
	eventually(t, "cat waits", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, ".gears/waits"))
		require.NoError(t, err)
		return strings.Contains(string(text), "jobs")
	})
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.Error(t, cat.Wait())
	require.ErrorIs(t, unix.Statfs(dir, new(unix.Statfs_t)), unix.ENOTCONN)
	_, err := mount.Locate(filepath.Join(dir, "f"))
	require.ErrorContains(t, err, "dead")

	again := startMount(t, data, dir)
	text, err := os.ReadFile(filepath.Join(dir, "f"))
	require.NoError(t, err)
	require.Equal(t, "kept", string(text))
	require.NoError(t, again.Process.Kill())
	require.Error(t, again.Wait())
	require.NoError(t, mount.Detach(dir))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
	require.ErrorContains(t, mount.Detach(dir), "not a mount point")
}

// TestUnmountInUse: files that are open and reads that wait don't keep it.
func TestUnmountInUse(t *testing.T) {
	f := newFixture(t)
	f.put(t, "/q", "jobs", "leased")
	file, err := os.Create(f.path("f"))
	require.NoError(t, err)
	take, err := os.Open(f.control("q", "jobs", "take"))
	require.NoError(t, err)
	_, err = take.Read(make([]byte, 3))
	require.NoError(t, err)
	cat := exec.Command("cat", f.control("q", "other", "take"))
	require.NoError(t, cat.Start())
	f.waitFor(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	require.NoError(t, f.mount.Unmount(ctx))
	require.NoError(t, f.mount.Unmount(ctx), "again")
	f.mount.Wait()
	require.Error(t, cat.Wait())
	_, err = file.WriteString("x")
	require.ErrorIs(t, err, unix.ENOTCONN)
	file.Close() // answers ENOTCONN too
	take.Close()
	info := f.info(t, "/q", "jobs")
	require.EqualValues(t, 1, info.Records, "what was leased has gone back")
	require.Zero(t, info.Leased)
	entries, err := os.ReadDir(f.dir)
	require.NoError(t, err)
	require.Empty(t, entries, "the bare directory is there again")
}

func TestUnmountByOthers(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, unix.Unmount(f.dir, 0))
	f.mount.Wait()
	require.NoError(t, f.mount.Unmount(t.Context()))
}

// TestMountAsUser mounts through fusermount3.
func TestMountAsUser(t *testing.T) {
	needRoot(t)
	// As every distribution has it; containers may not.
	info, err := os.Stat("/dev/fuse")
	require.NoError(t, err)
	require.NoError(t, os.Chmod("/dev/fuse", 0o666))
	t.Cleanup(func() { require.NoError(t, os.Chmod("/dev/fuse", info.Mode().Perm())) })
	base := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(base), 0o755))
	binary, data, dir := filepath.Join(base, "test"), filepath.Join(base, "data"), filepath.Join(base, "mnt")
	require.NoError(t, exec.Command("cp", os.Args[0], binary).Run())
	for _, d := range []string{data, dir} {
		require.NoError(t, os.Mkdir(d, 0o755))
		require.NoError(t, os.Chown(d, 65534, 65534))
	}
	run := func(path string) (*exec.Cmd, *bytes.Buffer, io.Reader) {
		cmd := child("mount", data, dir)
		cmd.Path = binary
		cmd.Env = append(cmd.Env, "PATH="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		return cmd, &stderr, out
	}
	cmd, stderr, out := run(os.Getenv("PATH"))
	_, err = io.ReadFull(out, make([]byte, len("mounted\n")))
	require.NoError(t, err, stderr)
	t.Cleanup(func() { mount.Detach(dir) }) // done already, unless the test failed
	write := exec.Command("sh", "-c", "echo x > f && cat f")
	write.Dir = "/"
	write.SysProcAttr = cmd.SysProcAttr
	write.Args[2] = "cd " + dir + " && " + write.Args[2]
	text, err := write.CombinedOutput()
	require.NoError(t, err, string(text))
	require.Equal(t, "x\n", string(text))
	require.NoError(t, mount.Detach(dir))
	require.NoError(t, cmd.Wait())
}

// TestParseOptions: each known option is taken, others are named.
func TestParseOptions(t *testing.T) {
	o, err := mount.ParseOptions("ro,allow_other,nonempty,debug,fsname=x,attr_timeout=1.5,entry_timeout=2m,timeout=10,noexec,defaults,,_netdev")
	require.NoError(t, err)
	require.Equal(t, mount.Options{Name: "x", ReadOnly: true, AllowOther: true, NonEmpty: true, Debug: true,
		AttrTimeout: 1500 * time.Millisecond, EntryTimeout: 2 * time.Minute, Timeout: 10 * time.Second, Kernel: []string{"noexec"}}, o)
	o, err = mount.ParseOptions("attr_timeout=0,entry_timeout=0s")
	require.NoError(t, err)
	require.Negative(t, o.AttrTimeout, "never, not as the mount likes")
	require.Negative(t, o.EntryTimeout)
	for _, bad := range []string{"color", "ro=1", "fsname=", "attr_timeout", "attr_timeout=-1", "attr_timeout=x", "timeout=0.5", "timeout=x", "user_id=0"} {
		_, err := mount.ParseOptions("rw," + bad)
		require.ErrorContains(t, err, bad)
	}
}

func TestReadAhead(t *testing.T) {
	f := newFixture(t)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(f.dir, &st))
	text, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev)))
	require.NoError(t, err)
	want := "512\n"
	var sys unix.Statfs_t
	require.NoError(t, unix.Statfs("/sys", &sys))
	if sys.Flags&unix.ST_RDONLY != 0 { // as in some containers
		want = "128\n"
	}
	require.Equal(t, want, string(text))
}

func TestLocate(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.MkdirAll(f.path("a", "b"), 0o755))
	require.NoError(t, os.WriteFile(f.path("a", "file"), nil, 0o644))
	require.NoError(t, os.Rename(f.path("a"), f.path("c")))
	outside := t.TempDir()
	link := filepath.Join(outside, "link")
	require.NoError(t, os.Symlink(f.path("c", "new"), link))
	require.NoError(t, os.Symlink("file", f.path("c", "inner")))
	require.NoError(t, os.Symlink(f.path("c", "b"), filepath.Join(outside, "dir")))
	bound := filepath.Join(outside, "bound")
	require.NoError(t, os.Mkdir(bound, 0o755))
	require.NoError(t, unix.Mount(f.path("c"), bound, "", unix.MS_BIND, ""))
	defer func() { require.NoError(t, unix.Unmount(bound, 0)) }()
	for path, want := range map[string]string{
		f.dir:                         "/",
		f.path("c", "b"):              "/c/b",
		f.path("c", "file"):           "/c/file",
		f.path("c", "inner"):          "/c/file",
		f.path("c", "not", "yet"):     "/c/not/yet",
		link:                          "/c/new",
		outside + "/dir/x":            "/c/b/x",
		filepath.Join(bound, "b"):     "/c/b",
		filepath.Join(bound, "other"): "/c/other",
	} {
		l, err := mount.Locate(path)
		require.NoError(t, err, path)
		require.Equal(t, mount.Location{Node: "unix:/test.sock", Volume: "main", Path: want}, l, path)
	}
	_, err := mount.Locate(outside)
	require.ErrorIs(t, err, mount.ErrNotMounted)
	loop := filepath.Join(outside, "loop")
	require.NoError(t, os.Symlink(loop, loop))
	_, err = mount.Locate(loop)
	require.ErrorIs(t, err, unix.ELOOP)
	out := f.mustShell(t, "getfattr -d -m - c c/file")
	require.NotContains(t, out, "user.gears", "the attributes are not listed")
}
