package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs"
	"golang.org/x/sys/unix"
)

// failure is why a run failed by its own doing, or its record's: the same
// record may do better later, and another may now.
type failure struct{ reason string }

func (e *failure) Error() string { return e.reason }

func failuref(format string, args ...any) error { return &failure{fmt.Sprintf(format, args...)} }

// runSpec is what is run for each record, or set of records.
type runSpec struct {
	path    string   // of the program
	args    []string // beginning with its name; {} is the first record
	outputs bool     // what it writes is kept: see yield
	timeout time.Duration
	grouped bool // what it writes elsewhere is held back until it ends
}

// yield is what a run has written: to standard output, and the files of
// GEARSFS_OUT by their names.
type yield struct {
	stdout []byte
	names  []string // sorted
	files  [][]byte
}

// bytes is how much a run has written.
func (y yield) bytes() int {
	n := len(y.stdout)
	for _, f := range y.files {
		n += len(f)
	}
	return n
}

// runner runs a command again and again, one run at a time, in a directory of
// its own:
//
//	in/0, in/1, …   the records; in/0 is standard input
//	out/            what becomes a record of the stream of its name
type runner struct {
	*app
	spec runSpec
	dir  *runDir
	env  []string
	held [2]*os.File // standard output and error of a run that is grouped; nil where they pass through
}

// newRunner makes the directory; close must be called.
func (a *app) newRunner(spec runSpec) (*runner, error) {
	a.sweep.Do(sweepRunDirs)
	dir, err := makeRunDir()
	if err != nil {
		return nil, fmt.Errorf("a directory for the inputs (TMPDIR says where): %w", err)
	}
	r := &runner{app: a, spec: spec, dir: dir}
	r.env = append(os.Environ(), "GEARSFS_IN="+r.in())
	err = os.Mkdir(r.in(), 0o700)
	if spec.outputs && err == nil {
		r.env = append(r.env, "GEARSFS_OUT="+r.out())
		err = os.Mkdir(r.out(), 0o700)
	}
	for i, to := range []io.Writer{a.out, a.errs} {
		_, isFile := to.(*os.File)
		if err != nil || i == 0 && spec.outputs || isFile && !spec.grouped {
			continue
		}
		r.held[i], err = unnamed(dir.path)
	}
	if err != nil {
		r.close()
		return nil, fmt.Errorf("a directory for the inputs: %w", err)
	}
	return r, nil
}

// unnamed returns a file that goes with its last descriptor.
func unnamed(dir string) (*os.File, error) {
	path := filepath.Join(dir, "held")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return f, os.Remove(path)
}

func (r *runner) in() string  { return filepath.Join(r.dir.path, "in") }
func (r *runner) out() string { return filepath.Join(r.dir.path, "out") }

func (r *runner) close() {
	for _, f := range r.held {
		if f != nil {
			f.Close()
		}
	}
	if err := r.dir.remove(); err != nil {
		r.notef("remove %s: %v", r.dir.path, err)
	}
}

// run runs the command for a set of records and returns what it wrote. When ctx
// ends the command's process group is killed and its cause returned. Errors: a
// failure, which is the run's; notRunError and others are about this machine.
func (r *runner) run(ctx context.Context, records []gearsfs.Record) (yield, error) {
	cmd, err := r.command(records)
	if err != nil {
		return yield{}, err
	}
	stdin, err := r.writeInputs(records)
	if err != nil {
		return yield{}, fmt.Errorf("write the inputs: %w", err)
	}
	defer stdin.Close()
	cmd.Stdin = stdin
	var stdout *capture
	if r.spec.outputs {
		if stdout, err = newCapture(); err != nil {
			return yield{}, err
		}
		cmd.Stdout = stdout.to
	} else {
		cmd.Stdout = r.stream(0, r.app.out)
	}
	cmd.Stderr = r.stream(1, r.errs)
	status, why, err := r.runCommand(ctx, cmd, stdout)
	if err != nil {
		return yield{}, err
	}
	var y yield
	if stdout != nil {
		if y.stdout, err = stdout.finish(); err != nil {
			return yield{}, err
		}
		why = firstError(why, stdout.why())
	}
	if err := r.release(); err != nil {
		return yield{}, err
	}
	switch {
	case why == nil && status == exitSignal+int(syscall.SIGPIPE) && r.brokenPipe():
		return yield{}, outputError(syscall.EPIPE)
	case why == nil && status != 0:
		why = failuref("exit status %d", status)
	case why == nil && r.spec.outputs:
		why = r.collect(&y)
	}
	if r.spec.outputs {
		if err := r.empty(); err != nil {
			return yield{}, err
		}
	}
	return y, why
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// runCommand runs cmd to its end and returns its status, and why it was killed.
func (r *runner) runCommand(ctx context.Context, cmd *exec.Cmd, stdout *capture) (status int, why, err error) {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var p *process
	if err == nil {
		p, err = startProcess(cmd)
	}
	if err != nil {
		if stdout != nil {
			stdout.drop()
		}
		if errors.Is(err, syscall.E2BIG) {
			return 0, nil, failuref("the record is too long for an argument, take it from standard input")
		}
		if ctx.Err() == nil {
			err = &notRunError{r.spec.args[0], err}
		}
		return 0, nil, err
	}
	defer context.AfterFunc(ctx, func() { p.kill(context.Cause(ctx)) })()
	if r.spec.timeout > 0 {
		timer := time.AfterFunc(r.spec.timeout, func() { p.kill(failuref("did not end within --timeout")) })
		defer timer.Stop()
	}
	if stdout != nil {
		stdout.start(func(why error) { p.kill(why) })
	}
	status, why = p.wait(true)
	return status, why, nil
}

// command returns the command for a set of records, without its streams.
func (r *runner) command(records []gearsfs.Record) (*exec.Cmd, error) {
	args := r.spec.args
	for i, arg := range args {
		if i == 0 || !strings.Contains(arg, "{}") {
			continue
		}
		if i = bytes.IndexByte(records[0].Data, 0); i >= 0 {
			return nil, failuref("the record contains NUL and can't be an argument, take it from standard input")
		}
		text := string(bytes.TrimSuffix(records[0].Data, []byte{'\n'}))
		replaced := make([]string, len(args))
		replaced[0] = args[0]
		for j, arg := range args[1:] {
			replaced[j+1] = strings.ReplaceAll(arg, "{}", text)
		}
		args = replaced
		break
	}
	first := records[0]
	env := append(r.env[:len(r.env):len(r.env)],
		"GEARSFS_KEY="+string(first.Key), "GEARSFS_SEQ="+strconv.FormatUint(uint64(first.Place.Seq), 10),
		"GEARSFS_TYPE="+strings.ReplaceAll(first.Type, "\x00", ""), "GEARSFS_DELIVERIES="+strconv.FormatUint(uint64(first.Deliveries), 10))
	return &exec.Cmd{Path: r.spec.path, Args: args, Env: env}, nil
}

// writeInputs writes the records to files and returns the first of them, to be
// read. They are new files: what an earlier run has left behind keeps its own.
func (r *runner) writeInputs(records []gearsfs.Record) (first *os.File, err error) {
	for i, record := range records {
		path := filepath.Join(r.in(), strconv.Itoa(i))
		if err := os.RemoveAll(path); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil && len(record.Data) > 0 {
			_, err = f.WriteAt(record.Data, 0)
		}
		if i == 0 {
			first = f
		} else if f != nil {
			f.Close()
		}
		if err != nil {
			if first != nil {
				first.Close()
			}
			return nil, err
		}
	}
	return first, nil
}

// stream is where a run's standard stream i goes: to the file that holds it back
// or on to what this process has there.
func (r *runner) stream(i int, through io.Writer) io.Writer {
	if r.held[i] != nil {
		return r.held[i]
	}
	return through
}

// release writes what was held back of a run.
func (r *runner) release() error {
	for i, to := range []io.Writer{r.app.out, r.errs} {
		f := r.held[i]
		if f == nil {
			continue
		}
		size, err := f.Seek(0, io.SeekEnd)
		if err == nil && size == 0 {
			continue
		}
		if err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err == nil {
			r.printMu.Lock()
			if b, ok := r.errs.(*board); ok {
				b.clear()
			}
			_, err = io.Copy(onlyWriter{to}, f)
			r.printMu.Unlock()
		}
		if err != nil && i == 0 {
			return outputError(err)
		}
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	return nil
}

// onlyWriter hides what else a writer can do: the chunks are to be written one
// by one, each whole.
type onlyWriter struct{ io.Writer }

// brokenPipe reports whether nobody reads what runs write to this process's
// standard output: then it is not for a record to be blamed.
func (r *runner) brokenPipe() bool {
	f, ok := r.app.out.(*os.File)
	if !ok || r.spec.outputs {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLOUT}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&unix.POLLERR != 0
}

// collect reads what the command wrote into GEARSFS_OUT.
func (r *runner) collect(y *yield) error {
	entries, err := os.ReadDir(r.out())
	if err != nil {
		return failuref("GEARSFS_OUT: %v", err)
	}
	for _, e := range entries {
		name := e.Name()
		if err := gearsfs.Key(name).Check(); err != nil {
			return failuref("GEARSFS_OUT: %q is no key: %v", name, err)
		}
		if !e.Type().IsRegular() {
			return failuref("GEARSFS_OUT: %s is not a regular file", name)
		}
		f, err := os.Open(filepath.Join(r.out(), name))
		if err != nil {
			return failuref("GEARSFS_OUT: %v", err)
		}
		data, err := io.ReadAll(io.LimitReader(f, gearsfs.RecordBytesMax+1))
		f.Close()
		switch {
		case err != nil:
			return failuref("GEARSFS_OUT: %v", err)
		case len(data) > gearsfs.RecordBytesMax:
			return failuref("GEARSFS_OUT: %s has more than the %d MiB that a record may have", name, gearsfs.RecordBytesMax>>20)
		}
		y.names, y.files = append(y.names, name), append(y.files, data)
	}
	return nil
}

// empty removes what a run has left in GEARSFS_OUT.
func (r *runner) empty() error {
	entries, err := os.ReadDir(r.out())
	if err == nil && len(entries) == 0 {
		return nil
	}
	if err := os.RemoveAll(r.out()); err != nil {
		return err
	}
	return os.Mkdir(r.out(), 0o700)
}

// execRuns runs a shell command per record, for those who only look.
type execRuns struct{ *runner }

// shellSpec is how --exec has sh run COMMAND.
func shellSpec(command string) (runSpec, error) {
	path, err := lookCommand("sh")
	return runSpec{path: path, args: []string{"sh", "-c", command}}, err
}

func (a *app) startExec(command string) (*execRuns, error) {
	spec, err := shellSpec(command)
	if err != nil {
		return nil, err
	}
	r, err := a.newRunner(spec)
	return &execRuns{r}, err
}

var _ shower = (*execRuns)(nil)

// write implements shower.
func (r *execRuns) write(ctx context.Context, records []gearsfs.Record) (int, error) {
	for i, record := range records {
		if _, err := r.run(ctx, []gearsfs.Record{record}); err != nil {
			return i, fmt.Errorf("record %d: %w", record.Place.Seq, err)
		}
	}
	return len(records), nil
}
