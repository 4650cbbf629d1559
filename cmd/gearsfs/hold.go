package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// holdLease is how long a permit stays with a holder that is not heard of, unless
// --lease says otherwise. A holder that can't extend it kills its command before.
const (
	holdLease    = 10 * time.Second
	holdLeaseMin = time.Second
)

// permitsMax bounds what one put makes.
const permitsMax = gearsfs.BatchRecordsMax

type holdOptions struct {
	node    string
	permits positiveFlag
	noWait  bool
	wait    units.Duration
	lease   units.Duration
}

func (a *app) holdCommand() *cobra.Command {
	var o holdOptions
	c := &cobra.Command{
		Use:   "hold FILE KEY [flags] -- COMMAND [ARG]...",
		Short: "Run a command while holding a lock, or a permit of a semaphore",
		Long: `Run COMMAND while holding one of PERMITS (default 1, a lock), which are records of the
stream KEY: made by whoever comes first, held by one at a time, over all machines. The
status is COMMAND's.

A permit that can't be extended, because its node is out of reach or gave it to another, is
lost, and COMMAND's process group is killed before another may hold it. That takes clocks
that run at about the same speed; whoever needs more than that has what COMMAND writes to
compare $GEARSFS_FENCE, which rises with every grant. A permit of a machine or process that
died is free again after --lease.`,
		Example: `  gearsfs hold gears/locks deploy -- ./deploy.sh
  gearsfs hold gears/locks gpu -n 4 --wait 1h -- ./train
  gearsfs hold :/locks cron --no-wait -- ./nightly || echo "status 3: another has it"`,
		Args: apart(atLeast(0), "wait no-wait"),
		RunE: func(c *cobra.Command, args []string) error {
			words, command, err := beforeDash(c, args, 2)
			if err != nil {
				return err
			}
			return a.hold(c.Context(), o, streamArg{words[0], words[1]}, command)
		},
	}
	f := c.Flags()
	nodeFlag(f, &o.node)
	f.VarP(&o.permits, "permits", "n", "there are so many permits (default 1)")
	f.BoolVar(&o.noWait, "no-wait", false, "give up at once where no permit is free (status 3)")
	f.Var(&o.wait, "wait", "give up after waiting this long for a permit (status 3)")
	f.Var(&o.lease, "lease", "how long the permit stays with a holder that is out of reach (default 10s, at least 1s)")
	return c
}

func (a *app) hold(ctx context.Context, o holdOptions, stream streamArg, command []string) error {
	path, err := lookCommand(command[0])
	if err != nil {
		return notRun(err)
	}
	permits := uint64(1)
	if o.permits.set {
		permits = o.permits.value
	}
	if permits > permitsMax {
		return usagef("-n is at most %d", permitsMax)
	}
	lease := holdLease
	if o.lease.Given {
		if lease = o.lease.Value; lease < holdLeaseMin {
			return usagef("--lease is at least %s", holdLeaseMin)
		}
	}
	s, err := a.openStream(ctx, stream, o.node, o.wait)
	if err != nil {
		return err
	}
	if err := a.makePermits(ctx, s, permits); err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	l := &leaser{
		app: a, target: s.target, keys: []gearsfs.Key{s.key}, wait: o.wait, noWait: o.noWait,
		inVain: "no permit came free", leaseFor: lease, byReceipt: true, tries: math.MaxUint32, looked: true,
	}
	records, err := l.leaseOne(ctx, 1)
	switch {
	case errors.Is(err, gearsfs.ErrEmpty):
		return fmt.Errorf("%s: %w", s, gearsfs.ErrEmpty.Because("all permits are held"))
	case err != nil:
		return fmt.Errorf("%s: %w", s, err)
	}
	h := &holder{app: a, permit: records[0], stream: s, lease: lease}
	return h.run(ctx, &exec.Cmd{Path: path, Args: command})
}

// notRun is what a COMMAND that can't be run ends with: as env(1) does.
func notRun(err error) error {
	if e, ok := errors.AsType[*notRunError](err); ok {
		return &statusError{e, e.status()}
	}
	return err
}

// makePermits makes the records that permits are, where there are none. Who
// finds others already at it looks again.
func (a *app) makePermits(ctx context.Context, s volumeStream, permits uint64) error {
	for {
		info, err := s.Stream(ctx, s.file(), s.key)
		if err != nil && !errors.Is(err, gearsfs.ErrNotFound) {
			return cause(ctx, err)
		}
		switch there := info.Records + info.Leased + info.Delayed; {
		case there == permits:
			return nil
		case there > 0:
			return gearsfs.ErrExists.Because("it has %s, not %d: all must say the same -n, or clear it when nobody holds one", counted(there, "permit"), permits)
		}
		newest, empty := max(info.Tail.Seq, 1)-1, true
		put := &dgm.Put{File: s.file(), Key: s.key, Records: make([]gearsfs.NewRecord, permits), Mode: 0o666 &^ a.umask}
		_, err = s.Transact(ctx, dgm.Transact{NoWait: true, Steps: []dgm.Step{
			{Condition: &dgm.Condition{File: s.file(), Key: s.key, Newest: &newest, Empty: &empty}},
			{Put: put},
		}})
		if !errors.Is(err, gearsfs.ErrUnmet) {
			return cause(ctx, err)
		}
	}
}

// holder runs a command while it holds a permit.
type holder struct {
	*app
	permit gearsfs.Record
	stream volumeStream
	lease  time.Duration

	mu   sync.Mutex
	lost bool
}

func (h *holder) run(ctx context.Context, cmd *exec.Cmd) error {
	defer h.release(ctx)
	// The wait for the permit, and its answer, may have taken long: only what
	// is granted now is known to last.
	since := time.Now()
	extending, cancel := context.WithTimeout(ctx, h.lease/2)
	err := h.stream.Settle(extending, dgm.Settle{Receipts: []gearsfs.Receipt{*h.permit.Receipt}, Extend: h.lease})
	cancel()
	if err != nil {
		return fmt.Errorf("%s: the permit was lost before the start: %w", h.stream, cause(ctx, err))
	}
	cmd.Env = append(os.Environ(), "GEARSFS_FENCE="+strconv.FormatUint(h.permit.Receipt.Fence, 10))
	finish := h.connect(cmd)
	p, err := startProcess(cmd)
	if err != nil {
		finish()
		return notRun(&notRunError{cmd.Args[0], err})
	}
	p.nonstop = cmd.SysProcAttr.Foreground
	forward := func(s syscall.Signal) bool { p.signal(s); return true }
	h.onSignal.Store(&forward)
	defer h.onSignal.Store(nil)
	defer context.AfterFunc(ctx, func() { p.kill(context.Cause(ctx)) })()
	k := startKeeper(h.stream.Manager, h.lease, true)
	k.keep([]gearsfs.Receipt{*h.permit.Receipt}, since, func() {
		h.mu.Lock()
		h.lost = true
		h.mu.Unlock()
		p.kill(errLost)
	})
	status, why := p.wait(false)
	finish()
	k.close()
	switch {
	case errors.Is(why, errLost):
		h.notef("%s: the permit was lost: COMMAND was killed", h.stream)
	case why != nil:
		return why
	}
	if status == 0 {
		return nil
	}
	return &toldError{status}
}

// release gives the permit back.
func (h *holder) release(ctx context.Context) {
	h.mu.Lock()
	lost := h.lost
	h.mu.Unlock()
	if lost {
		return
	}
	releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	err := h.stream.Settle(releasing, dgm.Settle{
		Receipts: []gearsfs.Receipt{*h.permit.Receipt}, Return: true, Tries: math.MaxUint32,
	})
	if err != nil && !definite(err) {
		h.notef("%s: give back the permit (it is free in %s): %v", h.stream, h.lease, err)
	}
}

// connect gives cmd this process's standard streams. On a terminal its process
// group comes to the foreground, as a shell's job would: ^C and ^Z are its own.
// finish takes the terminal back.
func (h *holder) connect(cmd *exec.Cmd) (finish func()) {
	finish = func() {}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = h.in, h.out, h.errs
	tty, ok := h.in.(*os.File)
	if !ok || !isTerminal(tty) {
		return finish
	}
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	if err != nil || group != unix.Getpgrp() {
		return finish // in the background
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Ctty: 0}
	return func() {
		signal.Ignore(syscall.SIGTTOU)
		defer signal.Reset(syscall.SIGTTOU)
		if err := unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, group); err != nil {
			h.notef("take the terminal back: %v", err)
		}
	}
}
