package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/stretchr/testify/assert"
)

func TestExitStatus(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("broken"), 1},
		{gearsfs.ErrNotFound, 1},
		{gearsfs.ErrNoNode, 1},
		{gearsfs.ErrTooBig.Because("a record of 17 MiB"), 1},
		{usagef("unknown flag"), 2},
		{gearsfs.ErrKey.Because("a key must not be empty"), 2},
		{gearsfs.ErrEmpty, 3},
		{gearsfs.ErrFull, 3},
		{&waitError{what: "nothing came"}, 3},
		{gearsfs.ErrSealed, 4},
		{gearsfs.ErrEnd, 4},
		{gearsfs.ErrMaybe, 5},
		{&signalError{syscall.SIGINT}, 130},
		{&signalError{syscall.SIGPIPE}, 141},
		{errors.Join(&signalError{syscall.SIGTERM}, gearsfs.ErrMaybe), 143},
		{&toldError{status: 1}, 1},
		{gearsfs.ErrUnmet, 3},
		{gearsfs.ErrType, 1},
		{gearsfs.ErrGone, 1},
		{&statusError{errors.New("no such command"), 127}, 127},
	} {
		assert.Equal(t, c.want, exitStatus(c.err), "%v", c.err)
		if c.err != nil {
			assert.Equal(t, c.want, exitStatus(fmt.Errorf("jobs data: %w", c.err)), "wrapped %v", c.err)
		}
	}
}

func TestErrorLineIsOneLine(t *testing.T) {
	line := errorLine("gearsfs take", errors.Join(errors.New("a"), gearsfs.ErrNoNode))
	assert.NotContains(t, line, "\n")
	assert.True(t, strings.HasPrefix(line, "gearsfs take: a; node unreachable"), line)
	assert.Contains(t, line, "gearsfsd", "says what to do")
	line = errorLine("gearsfs take", fmt.Errorf(":/a\nb\x1b[2J\t\xffé: %w", gearsfs.ErrNotFound))
	assert.Equal(t, "gearsfs take: :/a; b?[2J?\xffé: no such file or directory", line)
}

func TestQuiet(t *testing.T) {
	pipe := &signalError{syscall.SIGPIPE}
	assert.True(t, quiet(fmt.Errorf("jobs: %w", pipe)))
	assert.False(t, quiet(errors.Join(pipe, errors.New("give back"))), "the other error needs words")
	assert.False(t, quiet(&signalError{syscall.SIGINT}))
	assert.True(t, quiet(&toldError{status: 1}), "its process told it")
}

func TestCauseOfAWaitThatIsOver(t *testing.T) {
	ctx, cancel := waitContext(context.Background(), units.Duration{Value: time.Nanosecond, Given: true}, "nothing came")
	defer cancel()
	<-ctx.Done()
	over := cause(ctx, fmt.Errorf("take: %w", ctx.Err()))
	assert.EqualError(t, over, "nothing came within --wait")
	assert.Equal(t, exitNotNow, exitStatus(over))
	assert.ErrorIs(t, cause(ctx, gearsfs.ErrEnd), gearsfs.ErrEnd, "the true outcome stays")
	assert.NoError(t, cause(ctx, nil))
}
