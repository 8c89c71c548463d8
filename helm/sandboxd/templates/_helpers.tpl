{{/* Short name, for labels and selectors. */}}
{{- define "sandboxd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of the objects: the release's, with the chart's name in it once. */}}
{{- define "sandboxd.fullname" -}}
{{- $name := include "sandboxd.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods; it must never change between releases. */}}
{{- define "sandboxd.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sandboxd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "sandboxd.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "sandboxd.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sandboxd
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sandboxd.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sandboxd.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sandboxd.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest -}}@{{ .Values.image.digest }}{{- else -}}:{{ default .Chart.AppVersion .Values.image.tag }}{{- end -}}
{{- end -}}

{{/* The settings file: the user's sections, and the addresses and directories that are the chart's affair. */}}
{{- define "sandboxd.config" -}}
{{- $server := dict "listen" "0.0.0.0:8080" "metrics_listen" "0.0.0.0:9464" "auth" true -}}
{{- $store := dict "data_dir" "/var/lib/sandboxd" -}}
{{- $config := mergeOverwrite (deepCopy .Values.config) (dict "server" $server "store" $store) -}}
{{- range $section, $values := $config }}
[{{ $section }}]
{{- range $name, $value := $values }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{ end -}}
{{- end -}}

{{/* What all containers of the pod have alike. The service runs as an ordinary user of the pod's own user namespace.
newuidmap gets its two capabilities from being set-uid; the service has none, and without privilege escalation newuidmap
would not either. */}}
{{- define "sandboxd.container" -}}
image: {{ include "sandboxd.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: true
  readOnlyRootFilesystem: true
  procMount: Unmasked
  capabilities:
    drop: [ALL]
    add: [SETUID, SETGID]
volumeMounts:
  - name: config
    mountPath: /etc/sandboxd
    readOnly: true
  - name: data
    mountPath: /var/lib/sandboxd
  - name: tmp
    mountPath: /tmp
{{- end -}}
