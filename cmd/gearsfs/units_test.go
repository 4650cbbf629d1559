package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCountFlag(t *testing.T) {
	for _, in := range []string{"", "0", "-1", "1.5", "ALL", "99999999999999999999"} {
		var f countFlag
		assert.Error(t, f.Set(in), in)
		assert.False(t, f.set, in)
	}
	var n, all countFlag
	require.NoError(t, n.Set("12"))
	assert.Equal(t, countFlag{value: 12, set: true}, n)
	require.NoError(t, all.Set("all"))
	assert.Equal(t, countFlag{all: true, set: true}, all)
}

func TestAfterFlag(t *testing.T) {
	var f afterFlag
	require.NoError(t, f.Set("0"))
	assert.Equal(t, afterFlag{set: true}, f)
	require.NoError(t, f.Set("end"))
	assert.True(t, f.end)
	assert.Error(t, f.Set("-1"))
	assert.Error(t, f.Set("start"))
}

func TestParseKeys(t *testing.T) {
	keys, err := parseKeys("urgent,normal")
	require.NoError(t, err)
	assert.Len(t, keys, 2)
	for _, in := range []string{"", "a,", ",a", "a/b", ".", "a,..", "a\nb"} {
		_, err := parseKeys(in)
		assert.Equal(t, exitUsage, exitStatus(err), "%q", in)
	}
}
