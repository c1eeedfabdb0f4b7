package credential

import (
	"slices"
	"strings"
)

// What a task brings itself must not go where the policy puts its own: it could
// upload to somebody else's account. What carries a credential is told by its
// name, in whatever case and however its words are joined.

// Words that a header's name ends in, and others that it does not carry a
// credential with.
var (
	credentialEndings = []string{
		"apikey", "accesskey", "assertion", "auth", "authentication", "authkey", "authorization", "bearer", "cookie", "cookie2", "credential", "credentials", "jwt",
		"key", "passphrase", "passwd", "password", "pat", "pwd", "secret", "secretkey", "token",
	}
	harmlessHeaders = []string{ // whole names, without dashes
		"seckey", "secwebsocketkey", "idempotencykey", "xidempotencykey", "requestkey", "cachekey", "surrogatekey", "xsurrogatekey", "partitionkey",
		"xmsdocumentdbpartitionkey", "routingkey", "locktoken", "csrftoken", "xcsrftoken", "xsrftoken", "xxsrftoken", "continuationtoken",
		"xcontinuationtoken", "pagetoken", "nexttoken", "nextpagetoken", "synctoken", "clienttoken", "xamzclienttoken",
		"xamzbucketobjectlocktoken", "xgoogencryptionkey", "xamzserversideencryptioncustomerkey", "xamzcopysourceserversideencryptioncustomerkey",
	}
)

// carriesCredential tells by a header's name.
func carriesCredential(name string) bool {
	name = strings.ToLower(name)
	plain := normal(name)
	if slices.Contains(harmlessHeaders, plain) {
		return false
	}
	last := name[strings.LastIndexAny(name, "-_.")+1:]
	return slices.ContainsFunc(credentialEndings, func(ending string) bool {
		// Longer endings are found where words are not separated, as in
		// X-TrackerToken; short ones are the ends of other words.
		return last == ending || len(ending) > 4 && strings.HasSuffix(plain, ending)
	})
}

// Names of parameters, without dashes and the like. Of keys there are too many
// that are of tables and pages to take all that end so.
var (
	credentialParameters = []string{
		"accesskey", "accesskeyid", "apikey", "appkey", "applicationkey", "auth", "authkey", "authorization", "awsaccesskeyid", "bearer",
		"consumerkey", "credential", "credentials", "developerkey", "googleaccessid", "jwt", "key", "passphrase", "passwd", "password", "pat",
		"privatekey", "pwd", "secret", "secretkey", "sig", "signature", "subscriptionkey", "xamzcredential", "xamzsignature", "xgoogcredential",
		"xgoogsignature",
	}
	credentialParameterEndings = []string{"apikey", "password", "secret", "token"}
	harmlessParameters         = []string{
		"pagetoken", "nexttoken", "nextpagetoken", "continuationtoken", "synctoken", "csrftoken", "xsrftoken", "clienttoken", "canceltoken",
		"maxtoken", "skiptoken", "devicetoken",
	}
)

// parameterCarriesCredential tells by a parameter's decoded name. What some
// frameworks put behind it, [] or [0], is no part of it.
func parameterCarriesCredential(name string) bool {
	name, _, _ = strings.Cut(name, "[")
	plain := normal(name)
	if slices.Contains(harmlessParameters, plain) {
		return false
	}
	return slices.Contains(credentialParameters, plain) ||
		slices.ContainsFunc(credentialParameterEndings, func(ending string) bool { return strings.HasSuffix(plain, ending) })
}

// normal is a name in lower case, without what its words are joined with.
func normal(name string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("-_. \t", r) {
			return -1
		}
		return r
	}, strings.ToLower(name))
}
