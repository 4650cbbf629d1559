package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// backgroundFD is the environment variable by which a mount knows that it was
// started by `mount --background`, and where to say that it is mounted.
const backgroundFD = "GEARSFS_BACKGROUND_FD"

// background starts this command again without --background, in a session of
// its own, and returns when that is mounted, or with its failure, which it has
// told on standard error by itself.
func (a *app) background(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	said, say, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	defer said.Close()
	child := exec.Command(self, inForeground(os.Args[1:])...)
	child.Env = append(os.Environ(), backgroundFD+"=3")
	child.ExtraFiles = []*os.File{say}
	child.Stderr = os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	say.Close()
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	interrupt := context.AfterFunc(ctx, func() { child.Process.Signal(syscall.SIGTERM) }) //nolint:errcheck // it may have ended
	defer interrupt()
	line, err := io.ReadAll(said)
	if err != nil {
		return fmt.Errorf("wait for the mount: %w", err)
	}
	if len(line) > 0 {
		return a.printf("%s", line)
	}
	err = child.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return &toldError{status: exit.ExitCode()}
	}
	return fmt.Errorf("the mount ended before it was there: %v", child.ProcessState)
}

// inForeground returns arguments without --background, however that is said: what
// is started with them would start itself again and again.
func inForeground(args []string) []string {
	var rest []string
	for i, arg := range args {
		if arg == "--" {
			return append(rest, args[i:]...)
		}
		if arg != "--background" && !strings.HasPrefix(arg, "--background=") {
			rest = append(rest, arg)
		}
	}
	return rest
}

// readySignal is where a mount says that it is there.
type readySignal struct {
	app    *app
	pipe   *os.File   // of a parent that waits; nil without one
	worker *successor // of a supervisor that waits; nil without one
}

func newReadySignal(a *app) (readySignal, error) {
	number := a.getenv(backgroundFD)
	if number == "" {
		return readySignal{app: a}, nil
	}
	fd, err := strconv.Atoi(number)
	if err != nil || fd < 3 {
		return readySignal{}, usagef("%s=%s is not a file descriptor", backgroundFD, number)
	}
	unix.CloseOnExec(fd)
	return readySignal{app: a, pipe: os.NewFile(uintptr(fd), "parent")}, nil
}

// mounted says that the mount is there. With a parent that waits, it lets go
// of that one's standard error first, so that whoever reads it sees its end.
func (r readySignal) mounted(dir string) error {
	if r.worker != nil {
		return r.worker.mounted()
	}
	line := fmt.Sprintf("mounted on %s\n", dir)
	if r.pipe == nil {
		return r.app.printf("%s", line)
	}
	if err := silence(); err != nil {
		return err
	}
	if _, err := io.WriteString(r.pipe, line); err != nil {
		return fmt.Errorf("go into the background: %w", err)
	}
	if err := r.pipe.Close(); err != nil {
		return fmt.Errorf("go into the background: %w", err)
	}
	return nil
}

// silence lets go of standard output and standard error.
func silence() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("go into the background: %w", err)
	}
	defer null.Close()
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("go into the background: %w", err)
		}
	}
	return nil
}
