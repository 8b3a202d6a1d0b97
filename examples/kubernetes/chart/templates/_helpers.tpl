{{- define "outbox-relay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Names of objects: 50 bytes at most, which leaves room for what follows, such as -migrate. */}}
{{- define "outbox-relay.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of one component: (list . "relay"). */}}
{{- define "outbox-relay.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "outbox-relay.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "outbox-relay.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{ include "outbox-relay.selector" . }}
{{- end -}}

{{- define "outbox-relay.image" -}}
{{- $image := .Values.image -}}
{{- $name := $image.repository -}}
{{- if $image.registry -}}{{- $name = printf "%s/%s" $image.registry $image.repository -}}{{- end -}}
{{- if $image.digest -}}
{{ $name }}@{{ $image.digest }}
{{- else -}}
{{ $name }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "outbox-relay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "outbox-relay.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{/* Whether only one relay may run: then there is no election. */}}
{{- define "outbox-relay.alone" -}}
{{- if eq (dig "election" "kind" "postgres" .Values.config) "none" -}}
{{- if gt (int .Values.replicaCount) 1 -}}
{{- fail "config.election.kind = none is a promise to run one relay: set replicaCount to 1" -}}
{{- end -}}
yes
{{- end -}}
{{- end -}}

{{/* A value of TOML. Helm reads all numbers as floating point, so toToml would write 3.0; all of ours are integers. */}}
{{- define "outbox-relay.value" -}}
{{- if kindIs "string" . -}}
{{ toJson . }}
{{- else if kindIs "bool" . -}}
{{ . }}
{{- else -}}
{{ int64 . }}
{{- end -}}
{{- end -}}

{{- define "outbox-relay.toml" -}}
{{- range $key, $value := .Values.config }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ $key }} = {{ include "outbox-relay.value" $value }}
{{- end }}
{{- end }}
{{- range $table, $settings := .Values.config }}
{{- if kindIs "map" $settings }}

[{{ $table }}]
{{- range $key, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ include "outbox-relay.value" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* 90 % of a memory limit: (list . resources). */}}
{{- define "outbox-relay.memory" -}}
{{- $limit := dig "limits" "memory" "" . | toString -}}
{{- if regexMatch "^[0-9]+Gi$" $limit -}}
- name: GOMEMLIMIT
  value: {{ div (mul (trimSuffix "Gi" $limit | int64) 1024 90) 100 }}MiB
{{- else if regexMatch "^[0-9]+Mi$" $limit -}}
- name: GOMEMLIMIT
  value: {{ div (mul (trimSuffix "Mi" $limit | int64) 90) 100 }}MiB
{{- else if $limit -}}
{{- fail (printf "a memory limit of %s: say it in Mi or Gi, so that GOMEMLIMIT can be 90 %% of it" $limit) -}}
{{- end -}}
{{- end -}}

{{/* What the relay and the doctor have in common. */}}
{{- define "outbox-relay.env" -}}
- name: CONFIG_PATH
  value: /etc/outbox/relay.toml
# All addresses of the pod, for the kubelet and for Prometheus.
- name: OUTBOX_HTTP_ADDR
  value: ":8080"
{{- if .Values.migration.enabled }}
# The tables are the migration's affair. This role may not make any.
- name: OUTBOX_MIGRATE
  value: "false"
{{- end }}
# These files are read again at each connection: a Secret that changes needs no restart.
{{- if .Values.database.passwordKey }}
{{- if not .Values.config.database_dsn }}{{ fail "database.passwordKey needs config.database_dsn: a DSN without a password" }}{{ end }}
- name: OUTBOX_DATABASE_PASSWORD_FILE
  value: /run/secrets/outbox/postgres/{{ .Values.database.passwordKey }}
{{- else }}
- name: OUTBOX_DATABASE_DSN_FILE
  value: /run/secrets/outbox/postgres/{{ .Values.database.dsnKey }}
{{- end }}
{{- with .Values.nats }}
{{- if .existingSecret }}
{{- if .urlKey }}
- name: OUTBOX_NATS_URL_FILE
  value: /run/secrets/outbox/nats/{{ .urlKey }}
{{- end }}
{{- if .credsKey }}
- name: OUTBOX_NATS_CREDS
  value: /run/secrets/outbox/nats/{{ .credsKey }}
{{- end }}
{{- if .nkeyKey }}
- name: OUTBOX_NATS_NKEY
  value: /run/secrets/outbox/nats/{{ .nkeyKey }}
{{- end }}
{{- else if not $.Values.config.nats_url }}
{{- fail "say where NATS is: nats.existingSecret, or config.nats_url" }}
{{- end }}
{{- if .tlsSecret }}
{{- if .caKey }}
- name: OUTBOX_NATS_TLS_CA
  value: /run/secrets/outbox/nats-tls/{{ .caKey }}
{{- end }}
{{- if .certKey }}
- name: OUTBOX_NATS_TLS_CERT
  value: /run/secrets/outbox/nats-tls/{{ .certKey }}
- name: OUTBOX_NATS_TLS_KEY
  value: /run/secrets/outbox/nats-tls/{{ .keyKey }}
{{- end }}
{{- end }}
{{- end }}
{{- with include "outbox-relay.memory" .Values.resources }}
{{ . }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "outbox-relay.mounts" -}}
- name: config
  mountPath: /etc/outbox
  readOnly: true
- name: postgres
  mountPath: /run/secrets/outbox/postgres
  readOnly: true
{{- if .Values.nats.existingSecret }}
- name: nats
  mountPath: /run/secrets/outbox/nats
  readOnly: true
{{- end }}
{{- if .Values.nats.tlsSecret }}
- name: nats-tls
  mountPath: /run/secrets/outbox/nats-tls
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "outbox-relay.volumes" -}}
- name: config
  configMap:
    name: {{ include "outbox-relay.fullname" . }}
- name: postgres
  secret:
    secretName: {{ required "database.existingSecret: the Secret with the relay's DSN is missing" .Values.database.existingSecret }}
    defaultMode: 0440
{{- with .Values.nats.existingSecret }}
- name: nats
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.nats.tlsSecret }}
- name: nats-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What all pods have in common. */}}
{{- define "outbox-relay.pod" -}}
# The relay does not speak to Kubernetes.
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An egress rule for DNS and Postgres, which relay and migration need. */}}
{{- define "outbox-relay.egress" -}}
# DNS, wherever it is served: in the cluster or on the node.
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
- ports:
    - port: {{ .Values.networkPolicy.postgresPort }}
  {{- with .Values.networkPolicy.postgres }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
