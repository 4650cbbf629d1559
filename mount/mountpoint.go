package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// subtype is what `mount` and df -T show: fuse.gearsfs.
const subtype = "gearsfs"

// prepare checks that dir can be mounted on and returns its absolute path
// without symbolic links. A dead FUSE mount that is there is detached first.
func prepare(dir string, nonEmpty bool) (string, error) {
	fail := func(format string, args ...any) (string, error) {
		return "", fmt.Errorf("mount point %s: %w", dir, fmt.Errorf(format, args...))
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fail("%w", err)
	}
	// Nothing is asked of what is mounted there before it is known to answer:
	// at first only the path to it is resolved.
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(parent, filepath.Base(abs))
	}
	if err := clearMounts(abs); err != nil {
		return fail("%w", err)
	}
	resolved, err := filepath.EvalSymlinks(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail("no such directory; make it first")
	case err != nil:
		return fail("%w", err)
	case resolved != abs:
		if err := clearMounts(resolved); err != nil {
			return fail("%w", err)
		}
	}
	f, err := os.OpenFile(resolved, unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return fail("not a directory")
	}
	if err != nil {
		return fail("%w", err)
	}
	defer f.Close()
	if nonEmpty {
		return resolved, nil
	}
	if names, err := f.Readdirnames(1); err != nil && err != io.EOF {
		return fail("%w", err)
	} else if len(names) > 0 {
		return fail("not empty: what is in it would be hidden; use another directory or -o nonempty")
	}
	return resolved, nil
}

// clearMounts detaches the dead FUSE mounts on dir and returns an error where there
// is a live one of any kind.
func clearMounts(dir string) error {
	for {
		on, err := mountedOn(dir)
		if err != nil || on == nil {
			return err
		}
		if !strings.HasPrefix(on.kind, "fuse") || !dead(dir) {
			return fmt.Errorf("busy: %s (%s) is mounted there; unmount it first", on.source, on.kind)
		}
		if err := detach(dir); err != nil {
			return fmt.Errorf("a dead mount is there and can't be detached: %w", err)
		}
	}
}

// deadTimeout is how long a mount may take to show that it lives.
const deadTimeout = 2 * time.Second

// dead reports whether nobody serves the FUSE mount on dir any more. One that
// does not answer in time is not dead: it has a process that could go on.
func dead(dir string) bool {
	answer := make(chan error, 1)
	go func() { // ends when the mount answers or dies
		var st unix.Statfs_t // the kernel knows no answer to this by itself
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	case <-time.After(deadTimeout):
		return false
	}
}

// mountEntry is one line of proc_pid_mountinfo(5).
type mountEntry struct {
	device, dir, kind, source string
}

// mountedOn returns the uppermost mount on exactly dir, nil where there is
// none. It does not touch the mount.
func mountedOn(dir string) (*mountEntry, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	var last *mountEntry
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 7 || unescapeMount(fields[4]) != dir {
			continue
		}
		for i := 6; i+2 < len(fields); i++ {
			if fields[i] == "-" {
				last = &mountEntry{fields[2], dir, fields[i+1], unescapeMount(fields[i+2])}
				break
			}
		}
	}
	return last, nil
}

// unescapeMount undoes the octal escapes of blanks in the mount table.
func unescapeMount(s string) string {
	for i := 0; i+3 < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
			s = s[:i] + string([]byte{byte(n)}) + s[i+4:]
		}
	}
	return s
}

// attach mounts on dir and returns the FUSE connection. Root mounts directly,
// others through the setuid program fusermount3.
func attach(dir string, o Options, maxRead int) (*os.File, error) {
	if o.Name == "" {
		o.Name = subtype
	}
	if os.Geteuid() == 0 {
		return attachDirect(dir, o, maxRead)
	}
	return attachHelper(dir, o, maxRead)
}

var mountFlags = map[string]struct {
	clear bool
	flag  uintptr
}{
	"exec": {true, unix.MS_NOEXEC}, "noexec": {false, unix.MS_NOEXEC},
	"suid": {true, unix.MS_NOSUID}, "nosuid": {false, unix.MS_NOSUID},
	"dev": {true, unix.MS_NODEV}, "nodev": {false, unix.MS_NODEV},
	"sync": {false, unix.MS_SYNCHRONOUS}, "async": {true, unix.MS_SYNCHRONOUS},
	"dirsync": {false, unix.MS_DIRSYNC},
	"atime":   {true, unix.MS_NOATIME}, "noatime": {false, unix.MS_NOATIME},
	"relatime": {false, unix.MS_RELATIME},
}

func attachDirect(dir string, o Options, maxRead int) (*os.File, error) {
	fd, err := openFUSE()
	if err != nil {
		return nil, err
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	for _, name := range o.Kernel {
		if f := mountFlags[name]; f.clear {
			flags &^= f.flag
		} else {
			flags |= f.flag
		}
	}
	if o.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,default_permissions",
		fd.Fd(), unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRead)
	if o.AllowOther {
		data += ",allow_other"
	}
	if err := unix.Mount(o.Name, dir, "fuse."+subtype, flags, data); err != nil {
		fd.Close()
		if errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("mount on %s: busy: something is mounted there", dir)
		}
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	return fd, nil
}

func openFUSE() (*os.File, error) {
	// Not os.OpenFile: that would put the descriptor into the runtime's
	// poller, and a FUSE connection is read by blocking threads.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("no /dev/fuse: the kernel's FUSE module is not loaded (modprobe fuse) or not given to this container")
	case err != nil:
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// attachHelper lets fusermount3 mount; it hands the connection back over a
// socket (fusermount3(1), _FUSE_COMMFD).
func attachHelper(dir string, o Options, maxRead int) (*os.File, error) {
	helper, err := helperPath()
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	defer ours.Close()
	defer theirs.Close()

	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	options := append([]string{"fsname=" + escape.Replace(o.Name), "subtype=" + subtype,
		fmt.Sprintf("max_read=%d", maxRead), "default_permissions"}, o.Kernel...)
	if o.AllowOther {
		options = append(options, "allow_other")
	}
	if o.ReadOnly {
		options = append(options, "ro")
	}
	cmd := exec.Command(helper, "-o", strings.Join(options, ","), "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mount on %s: %s", dir, helperError(out, err))
	}
	theirs.Close()
	return receiveFile(ours)
}

func receiveFile(socket *os.File) (*os.File, error) {
	buf, oob := make([]byte, 16), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(socket.Fd()), buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive the FUSE connection: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("fusermount3 sent no FUSE connection")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("fusermount3 sent no FUSE connection")
	}
	return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
}

func helperPath() (string, error) {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "/usr/bin/fusermount3"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("fusermount3 is missing: only root can mount without it; install the package fuse3")
}

func helperError(out []byte, err error) string {
	if text := bytes.TrimSpace(out); len(text) > 0 {
		return string(text)
	}
	return err.Error()
}

// Detach unmounts the FUSE file system on dir, dead or alive; where it is in
// use, it is taken out of the tree at once and goes when its last user does.
func Detach(dir string) error {
	_, err := Evict(dir, false)
	return err
}

// Evict is Detach, and returns who uses the file system where it is in use. With
// force their calls on it fail from then on, also those that wait, as they do
// for ever where who serves it is frozen.
func Evict(dir string, force bool) ([]User, error) {
	abs, err := findMount(dir)
	if err != nil {
		return nil, err
	}
	if err := unmount(abs, 0); err == nil {
		return nil, nil
	}
	users := usersOf(abs)
	flags := unix.MNT_DETACH
	if force {
		flags |= unix.MNT_FORCE
	}
	if err := unmount(abs, flags); err != nil {
		return users, fmt.Errorf("unmount %s: %w", dir, err)
	}
	return users, nil
}

// findMount returns the path under which the mount table has a GearsFS mount. It
// does not touch the mount.
func findMount(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("unmount %s: %w", dir, err)
	}
	// Not through the last component, which may be dead.
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(parent, filepath.Base(abs))
	}
	on, err := mountedOn(abs)
	if err == nil && on == nil {
		if target, linkErr := filepath.EvalSymlinks(abs); linkErr == nil {
			abs = target
			on, err = mountedOn(abs)
		}
	}
	switch {
	case err != nil:
		return "", err
	case on == nil:
		return "", fmt.Errorf("unmount %s: not a mount point", dir)
	case on.kind != "fuse."+subtype:
		return "", fmt.Errorf("unmount %s: %s (%s) is mounted there, not a GearsFS", dir, on.source, on.kind)
	}
	return abs, nil
}

// detach takes a mount out of the tree, also where it is in use.
func detach(dir string) error { return unmount(dir, unix.MNT_DETACH) }

func unmount(dir string, flags int) error {
	if os.Geteuid() == 0 {
		return unix.Unmount(dir, flags|unix.UMOUNT_NOFOLLOW)
	}
	helper, err := helperPath()
	if err != nil {
		return err
	}
	arguments := []string{"-u"}
	if flags&unix.MNT_DETACH != 0 {
		arguments = append(arguments, "-z")
	}
	if out, err := exec.Command(helper, append(arguments, "--", dir)...).CombinedOutput(); err != nil {
		return errors.New(helperError(out, err))
	}
	return nil
}
