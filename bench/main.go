// Command bench measures GearsFS beside what it is compared with, in turn and
// in one run, and prints medians and ratios:
//
//	go run ./bench queue       durable puts and takes beside Pebble's Set(Sync)
//	go run ./bench work        the same work on GearsFS, Redis, beanstalkd and NATS
//	go run ./bench mount       the mount beside go-fuse's loopback example, by requests
//	                           and with passthrough, and beside JuiceFS
//	go run ./bench wordcount   two nodes beside wc
//	go run ./bench start       start-up time and the binaries' sizes
//	go run ./bench cluster     three nodes beside NATS JetStream and etcd: all of
//	                           throughput, failover, catchup and idle
//
// It builds the binaries itself and works below -dir, on the disk that is to be
// measured. Figures of a busy machine mean little; ratios mean more.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// bench is one run: where it works, how often and for how long.
type bench struct {
	dir     string // emptied and removed at the end
	bin     string // the binaries
	rounds  int
	seconds time.Duration // of one measurement
	kills   int
	peers   []string // that it is measured beside, nil for all that it can be
	rows    *regexp.Regexp
	ldflags string
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	dir := flags.String("dir", ".", "work in a new directory below this one")
	rounds := flags.Int("rounds", 5, "rounds to take medians of")
	seconds := flags.Duration("time", 2*time.Second, "length of one measurement")
	kills := flags.Int("kills", 50, "how often failover kills the leader")
	peers := flags.String("peers", "all", "what work, cluster and mount measure beside GearsFS, of "+
		strings.Join(peerNames(), ", ")+`; "" is nothing, but for go-fuse's loopback example`)
	symbols := flags.Bool("symbols", false, "build what is measured with symbols, so that perf can name its functions")
	rows := flags.String("rows", "", "the rows to measure of the tables of work and throughput, a regular expression")
	if err := flags.Parse(args); err != nil {
		return err
	}
	workloads := map[string]func(context.Context, *bench) error{
		"queue": queue, "work": works, "mount": mounts, "wordcount": words, "start": start,
		"cluster": cluster, "throughput": throughput, "failover": failovers, "catchup": catchUp, "idle": idle,
	}
	if flags.NArg() == 0 {
		return fmt.Errorf("name a workload: %s", strings.Join(slices.Sorted(maps.Keys(workloads)), ", "))
	}
	work, err := os.MkdirTemp(*dir, "bench-")
	if err != nil {
		return err
	}
	if work, err = filepath.Abs(work); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	b := &bench{dir: work, bin: filepath.Join(work, "bin"), rounds: *rounds, seconds: *seconds, kills: *kills}
	if !*symbols {
		b.ldflags = "-s -w"
	}
	if *peers != "all" {
		b.peers = strings.FieldsFunc(*peers, func(r rune) bool { return r == ',' })
	}
	for _, name := range b.peers {
		if !slices.Contains(peerNames(), name) {
			return fmt.Errorf("no peer %q", name)
		}
	}
	if b.rows, err = regexp.Compile(*rows); err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	if err := b.build(ctx, "./cmd/..."); err != nil {
		return err
	}
	for _, name := range flags.Args() {
		f, ok := workloads[name]
		if !ok {
			return fmt.Errorf("no workload %q", name)
		}
		if err := f(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// peerNames are what -peers may name.
func peerNames() []string {
	return slices.Sorted(slices.Values(append(slices.Collect(maps.Keys(servers)), juiceFS)))
}

// peersOf returns those of a workload's peers that were asked for.
func (b *bench) peersOf(workload ...string) []string {
	if b.peers == nil {
		return workload
	}
	return slices.DeleteFunc(workload, func(name string) bool { return !slices.Contains(b.peers, name) })
}

// build puts the programs of a package pattern into b.bin.
func (b *bench) build(ctx context.Context, pattern string) error {
	return b.goBuild(ctx, ".", "-o", b.bin+"/", pattern)
}

func (b *bench) goBuild(ctx context.Context, module string, args ...string) error {
	if err := os.MkdirAll(b.bin, 0o755); err != nil {
		return err
	}
	args = append([]string{"build", "-C", module, "-trimpath", "-ldflags", b.ldflags}, args...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// process is a program that runs until it is stopped.
type process struct {
	cmd    *exec.Cmd
	log    string        // what it prints
	exited chan struct{} // closed when it has ended, as err says
	err    error
}

// startProcess starts a program and waits until it prints ready.
func (b *bench) startProcess(ctx context.Context, ready, name string, args ...string) (*process, error) {
	return b.startCommand(ctx, ready, exec.Command(filepath.Join(b.bin, name), args...))
}

// startCommand is startProcess with a command that somebody has made.
func (b *bench) startCommand(ctx context.Context, ready string, cmd *exec.Cmd) (*process, error) {
	name := filepath.Base(cmd.Path)
	log, err := os.CreateTemp(b.dir, "log-")
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log.Name(), exited: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	for {
		text, err := os.ReadFile(p.log)
		if err == nil && strings.Contains(string(text), ready) {
			return p, nil
		}
		select {
		case <-p.exited:
			text, err := os.ReadFile(p.log)
			return nil, errors.Join(fmt.Errorf("%s ended: %w\n%s", name, p.err, text), err)
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%s did not come up: %w\n%s", name, ctx.Err(), text), err, p.stop())
		case <-time.After(time.Millisecond):
		}
	}
}

// stop ends the program in peace.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-p.exited
	return p.err
}

// kill ends the program at once.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.exited
	return nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func median(xs []float64) float64 {
	xs = slices.Sorted(slices.Values(xs))
	return xs[len(xs)/2]
}

// row prints a workload's medians of ours and theirs, and the median of the
// rounds' ratios.
func row(name, unit string, ours, theirs []float64) {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / theirs[i]
	}
	fmt.Printf("%-34s %12.5g %12.5g %s   ratio %.2f (%.2f to %.2f)\n", name, median(ours), median(theirs), unit,
		median(ratios), slices.Min(ratios), slices.Max(ratios))
}
