package credential

import (
	"slices"
	"strings"

	"creel/internal/policy"
)

// What a task brings itself must not go where the policy puts its own: it could
// upload to somebody else's account. What carries a credential is told by its
// name, in whatever case and however its words are joined.

// Words that a header's name ends in, and others that it does not carry a
// credential with.
var (
	credentialEndings = []string{
		"apikey", "accesskey", "assertion", "auth", "authentication", "authkey", "authorization", "bearer", "cookie", "cookie2", "credential", "credentials", "jwt",
		"key", "pass", "passphrase", "passwd", "password", "pat", "pwd", "secret", "secretkey", "token",
	}
	// Whole names, without dashes, which say who asks, too: services behind a
	// proxy believe them. Others with these words are of traces and caches.
	credentialHeaders = []string{
		"clientcert", "dpop", "proxyuser", "remoteuser", "session", "sessionticket", "sid", "signature", "sslclientcert", "ticket", "xauthenticateduser",
		"xauthrequestemail", "xauthrequestgroups", "xauthrequestpreferredusername", "xauthrequestuser", "xauthuser", "xauthticket", "xauthsession",
		"xclientcert", "xforwardedclientcert", "xforwardedemail", "xforwardedgroups", "xforwardedpreferredusername", "xforwardeduser", "xproxyuser",
		"xremoteemail", "xremotegroup", "xremotegroups", "xremoteuser", "xsession", "xsessionid", "xsid", "xsignature", "xsslclientcert", "xticket",
		"xwebauthuser",
	}
	credentialBeginnings = []string{"impersonate", "xmsclientprincipal", "xgoogauthenticateduser", "xremoteextra"}
	harmlessHeaders      = []string{ // whole names, without dashes
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
	if slices.Contains(credentialHeaders, plain) ||
		slices.ContainsFunc(credentialBeginnings, func(beginning string) bool { return strings.HasPrefix(plain, beginning) }) {
		return true
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
		"accesskey", "accesskeyid", "apikey", "appkey", "applicationkey", "assertion", "auth", "authkey", "authorization", "awsaccesskeyid", "bearer",
		"clientassertion", "consumerkey", "credential", "credentials", "developerkey", "googleaccessid", "jsessionid", "jwt", "key", "pass", "passphrase", "passwd", "password", "pat",
		"phpsessid", "privatekey", "pwd", "secret", "secretkey", "session", "sessionkey", "sessid", "sharedaccesssignature", "sid", "sig", "signature",
		"subscriptionkey", "ticket", "xamzcredential", "xamzsignature", "xgoogcredential",
		"xgoogsignature",
	}
	credentialParameterEndings = []string{"apikey", "password", "secret", "token"}
	harmlessParameters         = []string{
		"pagetoken", "nexttoken", "nextpagetoken", "continuationtoken", "synctoken", "csrftoken", "xsrftoken", "clienttoken", "canceltoken",
		"maxtoken", "skiptoken", "devicetoken",
	}
)

// parameterCarriesCredential tells by a parameter's name as it is written. What
// some frameworks put behind it, [] or [0], is no part of it.
func parameterCarriesCredential(written string) bool {
	if written == "" {
		return false
	}
	names, _ := policy.ParameterNames(written)
	return slices.ContainsFunc(names, func(name string) bool {
		plain := normal(name)
		if slices.Contains(harmlessParameters, plain) {
			return false
		}
		return slices.Contains(credentialParameters, plain) ||
			slices.ContainsFunc(credentialParameterEndings, func(ending string) bool { return strings.HasSuffix(plain, ending) })
	})
}

// sameParameter reports whether a server may take a parameter, as it is
// written, for the one of a name.
func sameParameter(written, name string) bool {
	names, _ := policy.ParameterNames(written)
	wanted, _ := policy.ParameterNames(name)
	return slices.ContainsFunc(names, func(n string) bool {
		return slices.ContainsFunc(wanted, func(want string) bool { return normal(n) == normal(want) })
	})
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
